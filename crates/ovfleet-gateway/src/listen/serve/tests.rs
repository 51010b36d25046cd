//! How answers are written.

use std::io::IoSlice;

use tokio::io::AsyncWriteExt as _;

use super::*;

/// Remembers what is done with it, and could write several pieces at once.
#[derive(Default)]
struct Recorder(Vec<Done>);

#[derive(Debug, PartialEq)]
enum Done {
    Write(Vec<u8>),
    Pieces,
    Flush,
    Shutdown,
}

impl AsyncRead for Recorder {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        buffer.put_slice(b"request");
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Recorder {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.push(Done::Write(bytes.to_vec()));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.push(Done::Pieces);
        Poll::Ready(Ok(pieces.iter().map(|piece| piece.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.push(Done::Flush);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.push(Done::Shutdown);
        Poll::Ready(Ok(()))
    }
}

/// Fails if a stream offers what makes h2 write each answer by itself, or swallows anything.
#[tokio::test]
async fn a_gathered_stream_takes_one_piece_at_a_time() {
    let mut stream = Gathered(Recorder::default());
    assert!(!stream.is_write_vectored());
    let pieces = [IoSlice::new(b"head"), IoSlice::new(b"body")];
    assert_eq!(stream.write_vectored(&pieces).await.ok(), Some(4));
    stream.write_all(b"rest").await.expect("it is written");
    stream.flush().await.expect("it is flushed");
    stream.shutdown().await.expect("it is shut down");
    let mut request = [0; 7];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut request)
        .await
        .expect("it is read");
    assert_eq!(&request, b"request");
    let done = [
        Done::Write(b"head".to_vec()),
        Done::Write(b"rest".to_vec()),
        Done::Flush,
        Done::Shutdown,
    ];
    assert_eq!(stream.0.0, done);
}

/// Two answers of an ordinary size go out in one write each time; without the gathering h2 writes each in pieces.
#[tokio::test]
async fn small_answers_go_out_together() {
    /// Counts writes on the way to a peer.
    struct Counted<S>(S, Arc<std::sync::atomic::AtomicUsize>);

    impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(context, buffer)
        }
    }

    impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write(context, bytes)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            pieces: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write_vectored(context, pieces)
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(context)
        }

        fn poll_shutdown(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(context)
        }
    }

    async fn writes_of<S>(gather: impl FnOnce(Counted<tokio::io::DuplexStream>) -> S) -> usize
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        const ANSWER: &[u8] = &[b'x'; 800];
        let (near, far) = tokio::io::duplex(1 << 20);
        let writes = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let stream = gather(Counted(near, Arc::clone(&writes)));
        let service = hyper::service::service_fn(|_| async {
            let body = axum::body::Body::from(Bytes::from_static(ANSWER));
            Ok::<_, Infallible>(Response::new(body))
        });
        let server = http2::Builder::new(TokioExecutor::new());
        tokio::spawn(async move { server.serve_connection(TokioIo::new(stream), service).await });
        let client = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(far));
        let (mut calls, connection) = client.await.expect("it connects");
        tokio::spawn(connection);
        let request = || Request::new(axum::body::Body::empty());
        // The settings are out by then.
        calls.send_request(request()).await.expect("it is answered");
        let before = writes.load(std::sync::atomic::Ordering::Relaxed);
        let both = [calls.send_request(request()), calls.send_request(request())];
        for answer in futures_util::future::try_join_all(both)
            .await
            .expect("both")
        {
            let body = axum::body::Body::new(answer.into_body());
            let body = axum::body::to_bytes(body, 10_000).await.expect("a body");
            assert_eq!(body, ANSWER);
        }
        writes.load(std::sync::atomic::Ordering::Relaxed) - before
    }

    let gathered = writes_of(Gathered).await;
    let alone = writes_of(|stream| stream).await;
    assert!(gathered < alone, "{gathered} writes, and {alone} without");
}
