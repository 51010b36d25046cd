//! EventService on the wire: frames that are encoded once for all streams.
//!
//! The generated server would decode nothing and encode everything again for
//! each caller. Here the journal's entries are already encoded, framed as
//! elements of `EventBatch.events`, so that a batch is their concatenation.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes, BytesMut};
use ovfleet_proto::v1::{
    EventBatch, StreamEventsRequest, StreamEventsResponse, event_service_server::SERVICE_NAME,
    stream_events_response::Frame,
};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};
use tonic::{
    Request, Response, Status,
    body::Body,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
    codegen::{Body as HttpBody, Service, StdError, http},
    server::{Grpc, NamedService, ServerStreamingService},
};
use tonic_prost::ProstDecoder;

use super::{events::Events, frames::FrameStream};

/// Field number of `EventBatch.events`.
const EVENTS: u32 = 1;
/// Field number of `EventBatch.cursor`.
const CURSOR: u32 = 2;
/// Field number of `StreamEventsResponse.batch`.
const BATCH: u32 = 1;

/// Frames an encoded `Event` as one element of `EventBatch.events`.
pub(crate) fn batch_element(event: &impl Message) -> Bytes {
    let length = event.encoded_len();
    let mut out =
        BytesMut::with_capacity(key_len(EVENTS) + encoded_len_varint(length as u64) + length);
    encode_key(EVENTS, WireType::LengthDelimited, &mut out);
    encode_varint(length as u64, &mut out);
    event.encode_raw(&mut out);
    out.freeze()
}

/// A whole `StreamEventsResponse` with one batch of framed elements.
pub(crate) fn batch_frame<'a>(
    elements: impl Iterator<Item = &'a Bytes> + Clone,
    cursor: &str,
) -> Bytes {
    let cursor_length = key_len(CURSOR) + encoded_len_varint(cursor.len() as u64) + cursor.len();
    let length = elements.clone().map(Bytes::len).sum::<usize>() + cursor_length;
    let mut out = BytesMut::with_capacity(length + 16);
    encode_key(BATCH, WireType::LengthDelimited, &mut out);
    encode_varint(length as u64, &mut out);
    for element in elements {
        out.put_slice(element);
    }
    encode_key(CURSOR, WireType::LengthDelimited, &mut out);
    encode_varint(cursor.len() as u64, &mut out);
    out.put_slice(cursor.as_bytes());
    out.freeze()
}

/// Any other frame.
pub(crate) fn other_frame(frame: Frame) -> Bytes {
    debug_assert!(
        !matches!(&frame, Frame::Batch(EventBatch { .. })),
        "batches are built from framed elements"
    );
    StreamEventsResponse { frame: Some(frame) }
        .encode_to_vec()
        .into()
}

/// The tonic service around [`Events`].
#[derive(Debug, Clone)]
pub(crate) struct EventServer {
    events: Arc<Events>,
    decoding_message_size_max: usize,
}

impl EventServer {
    pub(crate) const fn new(events: Arc<Events>, decoding_message_size_max: usize) -> Self {
        Self {
            events,
            decoding_message_size_max,
        }
    }
}

impl NamedService for EventServer {
    const NAME: &'static str = SERVICE_NAME;
}

impl<B> Service<http::Request<B>> for EventServer
where
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path() != "/ovfleet.v1.EventService/StreamEvents" {
            return Box::pin(async { Ok(Status::unimplemented("no such method").into_http()) });
        }
        let method = StreamEvents(Arc::clone(&self.events));
        let mut grpc = Grpc::new(FrameCodec)
            .apply_max_message_size_config(Some(self.decoding_message_size_max), None);
        Box::pin(async move { Ok(grpc.server_streaming(method, request).await) })
    }
}

struct StreamEvents(Arc<Events>);

impl ServerStreamingService<StreamEventsRequest> for StreamEvents {
    type Response = Bytes;
    type ResponseStream = FrameStream<Bytes>;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<FrameStream<Bytes>>, Status>> + Send>>;

    fn call(&mut self, request: Request<StreamEventsRequest>) -> Self::Future {
        let events = Arc::clone(&self.0);
        Box::pin(async move { events.stream_events(request) })
    }
}

/// Decodes requests as usual; copies responses, which are encoded already.
struct FrameCodec;

impl Codec for FrameCodec {
    type Encode = Bytes;
    type Decode = StreamEventsRequest;
    type Encoder = FrameEncoder;
    type Decoder = ProstDecoder<StreamEventsRequest>;

    fn encoder(&mut self) -> FrameEncoder {
        FrameEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::default())
    }
}

struct FrameEncoder;

impl Encoder for FrameEncoder {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, frame: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&frame);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ovfleet_proto::v1::Event;

    use super::*;

    /// Fails if the hand-made framing is not what the schema says.
    #[test]
    fn a_concatenated_batch_decodes_as_the_message() {
        let events: Vec<Event> = (0..300)
            .map(|sequence| Event {
                gateway: "vpn1".to_owned(),
                sequence,
                kind: "client.established".repeat(usize::try_from(sequence).unwrap() % 20),
                ..Event::default()
            })
            .collect();
        for count in [0, 1, 2, 300] {
            let elements: Vec<Bytes> = events[..count].iter().map(batch_element).collect();
            let frame = batch_frame(elements.iter(), "cursor");
            let expected = StreamEventsResponse {
                frame: Some(Frame::Batch(EventBatch {
                    events: events[..count].to_vec(),
                    cursor: "cursor".to_owned(),
                })),
            };
            assert_eq!(StreamEventsResponse::decode(frame), Ok(expected));
        }
    }
}
