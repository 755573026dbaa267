//! go-plugin's own three services. The fourth, health, is `tonic-health`'s.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::proto::grpc_broker_server::GrpcBroker;
use crate::proto::grpc_controller_server::GrpcController;
use crate::proto::grpc_stdio_server::GrpcStdio;
use crate::proto::{ConnInfo, Empty, StdioData};

/// Ends the plugin at the host's request.
#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) shutdown: CancellationToken,
}

#[tonic::async_trait]
impl GrpcController for Controller {
    async fn shutdown(&self, _request: Request<Empty>) -> Result<Response<Empty>, Status> {
        if !self.shutdown.is_cancelled() {
            tracing::debug!("the host shuts the plugin down");
            self.shutdown.cancel();
        }
        Ok(Response::new(Empty {}))
    }
}

/// Extra connections between host and plugin. None is used here, but the host holds the stream, and logs an error if it is missing.
#[derive(Debug)]
pub(crate) struct Broker {
    pub(crate) shutdown: CancellationToken,
}

#[tonic::async_trait]
impl GrpcBroker for Broker {
    type StartStreamStream = Idle<ConnInfo>;

    async fn start_stream(
        &self,
        request: Request<Streaming<ConnInfo>>,
    ) -> Result<Response<Self::StartStreamStream>, Status> {
        let shutdown = self.shutdown.clone();
        let mut offers = request.into_inner();
        Ok(Response::new(Idle::until(async move {
            let host_is_done = async {
                while let Ok(Some(offer)) = offers.message().await {
                    tracing::debug!(
                        service_id = offer.service_id,
                        "ignored a connection that the host offers"
                    );
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = host_is_done => {}
            }
        })))
    }
}

/// What the plugin prints: nothing, because stdout is `/dev/null`. The host reads the stream nevertheless.
#[derive(Debug)]
pub(crate) struct Stdio {
    pub(crate) shutdown: CancellationToken,
}

#[tonic::async_trait]
impl GrpcStdio for Stdio {
    type StreamStdioStream = Idle<StdioData>;

    async fn stream_stdio(&self, _request: Request<()>) -> Result<Response<Self::StreamStdioStream>, Status> {
        Ok(Response::new(Idle::until(self.shutdown.clone().cancelled_owned())))
    }
}

/// A stream without items that ends when a future does.
pub(crate) struct Idle<T> {
    /// None when it has ended.
    end: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    _item: std::marker::PhantomData<fn() -> T>,
}

impl<T> Idle<T> {
    fn until(end: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { end: Some(Box::pin(end)), _item: std::marker::PhantomData }
    }
}

impl<T> Stream for Idle<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.end {
            Some(end) => end.as_mut().poll(cx).map(|()| {
                self.end = None;
                None
            }),
            None => Poll::Ready(None),
        }
    }
}
