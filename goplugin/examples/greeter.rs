//! A plugin with one service of its own. Its host can be any program that uses go-plugin with the same handshake; without one:
//!
//! ```text
//! $ GREETER_PLUGIN=6f0c1d cargo run --package goplugin --example greeter
//! 1|1|unix|/tmp/greeter-yQ2mXb/plugin.sock|grpc|
//! $ kill %1
//! ```

use std::process::ExitCode;

use goplugin::{CancellationToken, HostRequest, Launch, Plugin, hclog};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use pb::greeter_server::{Greeter, GreeterServer};
use pb::{GreetRequest, GreetResponse};

#[allow(unreachable_pub, missing_debug_implementations, reason = "generated code")]
mod pb {
    include!(concat!(env!("OUT_DIR"), "/greeter.rs"));
}

/// The host has the same values in its `HandshakeConfig`.
const PLUGIN: Plugin =
    Plugin { name: "greeter", cookie_key: "GREETER_PLUGIN", cookie_value: "6f0c1d", protocol_version: 1 };

struct English;

#[tonic::async_trait]
impl Greeter for English {
    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<GreetResponse>, Status> {
        let name = request.into_inner().name;
        tracing::info!(name, "greeted");
        Ok(Response::new(GreetResponse { text: format!("Hello, {name}!") }))
    }
}

#[tokio::main]
#[expect(clippy::print_stderr, reason = "for a person, not for a host")]
async fn main() -> ExitCode {
    if PLUGIN.launched_by() == Launch::Person {
        eprintln!("This is a plugin. Its host starts it with {}={}.", PLUGIN.cookie_key, PLUGIN.cookie_value);
        return ExitCode::FAILURE;
    }
    hclog::init(hclog::Options {
        module: PLUGIN.name,
        crates: &[env!("CARGO_CRATE_NAME")],
        ..Default::default()
    });
    let status = match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "failed to serve");
            ExitCode::FAILURE
        }
    };
    hclog::flush();
    status
}

async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let request = HostRequest::from_env(&PLUGIN)?;
    let routes = Routes::new(GreeterServer::new(English));
    goplugin::serve(&PLUGIN, request, routes, CancellationToken::new()).await?;
    Ok(())
}
