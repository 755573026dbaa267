//! Compiles go-plugin's own services, and the service of the example, without `protoc`.
//!
//! The settings of the compiler are those of the driver's build script. They are written twice because a build script can share
//! code only with a crate that is published as well, and this crate can be used without the driver.

use std::error::Error;

/// In `proto/`: go-plugin's.
const PROTOS: [&str; 3] = ["grpc_broker.proto", "grpc_controller.proto", "grpc_stdio.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=examples/greeter.proto");
    compile(&PROTOS, "proto")?;
    compile(&["greeter.proto"], "examples")
}

fn compile(protos: &[&str], include_root: &str) -> Result<(), Box<dyn Error>> {
    tonic_prost_build::configure()
        // For hosts and tests; the linker drops what a plugin does not use.
        .build_client(true)
        .build_server(true)
        // No `connect()`: a client is always given its channel.
        .build_transport(false)
        .emit_rerun_if_changed(false)
        // The comments describe the wire and are not rustdoc.
        .disable_comments(["."])
        .compile_fds(protox::compile(protos, [include_root])?)?;
    Ok(())
}
