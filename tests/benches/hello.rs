//! The floor of a unary call: a bare tonic server that greets.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    task::{Context, Poll},
};

use anyhow::Result;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{Service, http},
    server::{Grpc, NamedService},
    transport::Server,
};
use tonic_prost::ProstCodec;

/// Where it answers.
pub(crate) const PATH: &str = "/helloworld.Greeter/SayHello";

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HelloRequest {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HelloReply {
    #[prost(string, tag = "1")]
    pub(crate) message: String,
}

/// Greets with a message of at least so many bytes.
#[derive(Clone, Debug)]
struct Greeter {
    message_bytes: usize,
}

/// Serves on the socket until killed; a peer's `main`.
#[tokio::main]
pub(crate) async fn serve(socket: &str, message_bytes: usize) -> Result<()> {
    let listener = UnixListener::bind(socket)?;
    Server::builder()
        .add_service(Greeter { message_bytes })
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await?;
    Ok(())
}

impl NamedService for Greeter {
    const NAME: &'static str = "helloworld.Greeter";
}

/// What tonic generates for a service with one method.
impl Service<http::Request<Body>> for Greeter {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = SayHello(self.clone());
        Box::pin(async move {
            let codec = ProstCodec::<HelloReply, HelloRequest>::default();
            Ok(Grpc::new(codec).unary(method, request).await)
        })
    }
}

struct SayHello(Greeter);

impl Service<Request<HelloRequest>> for SayHello {
    type Response = Response<HelloReply>;
    type Error = Status;
    type Future = Ready<Result<Response<HelloReply>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<HelloRequest>) -> Self::Future {
        let mut message = format!("Hello {}!", request.into_inner().name);
        message.extend(std::iter::repeat_n(
            '.',
            self.0.message_bytes.saturating_sub(message.len()),
        ));
        ready(Ok(Response::new(HelloReply { message })))
    }
}
