//! The messages of go-plugin's own services, with their servers and clients.
#![allow(
    clippy::all,
    clippy::missing_errors_doc,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "generated code"
)]

include!(concat!(env!("OUT_DIR"), "/plugin.rs"));

#[cfg(test)]
mod tests {
    use tonic::server::NamedService;

    use super::*;

    #[test]
    fn services_have_the_names_of_the_wire() {
        struct Nothing;
        type Controller = grpc_controller_server::GrpcControllerServer<Nothing>;
        type Broker = grpc_broker_server::GrpcBrokerServer<Nothing>;
        type Stdio = grpc_stdio_server::GrpcStdioServer<Nothing>;
        assert_eq!(Controller::NAME, "plugin.GRPCController");
        assert_eq!(Broker::NAME, "plugin.GRPCBroker");
        assert_eq!(Stdio::NAME, "plugin.GRPCStdio");
    }
}
