//! Compiles `proto/` into server and client code, without `protoc`.

use std::error::Error;

/// The contracts between Nomad and a driver, relative to [`INCLUDE_ROOT`].
const PROTOS: [&str; 6] = [
    "plugins/base/proto/base.proto",
    "plugins/drivers/proto/driver.proto",
    "plugins/shared/hclspec/hcl_spec.proto",
    "plugins/shared/structs/proto/attribute.proto",
    "plugins/shared/structs/proto/recoverable_error.proto",
    "plugins/shared/structs/proto/stats.proto",
];

const INCLUDE_ROOT: &str = "proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    for proto in PROTOS {
        println!("cargo::rerun-if-changed={INCLUDE_ROOT}/{proto}");
    }
    let descriptors = protox::compile(PROTOS, [INCLUDE_ROOT])?;
    tonic_prost_build::configure()
        // The clients are for the tests; the linker drops them from the plugin.
        .build_client(true)
        .build_server(true)
        // No `connect()`: a client is always given its channel, and the plugin needs no transport for one.
        .build_transport(false)
        .emit_rerun_if_changed(false)
        // The comments in proto/ are prose about the wire, not rustdoc.
        .disable_comments(["."])
        // It carries the task's secrets: src/proto.rs has a Debug that leaves them out.
        .skip_debug([".hashicorp.nomad.plugins.drivers.proto.TaskConfig"])
        .include_file("wire.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
