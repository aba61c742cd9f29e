//! Metrics and health over HTTP. Anyone who reaches the port may connect, so slow, frequent or silent clients
//! cost little: no keep-alive, a time limit on each connection, and a limit on their number.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::base::clock;
use crate::ingest::metrics::Metrics;

/// Connections at once. One more ends the oldest: so those who only hold theirs keep nobody out.
const MOST_CONNECTIONS: usize = 64;
/// Until a request's headers are there.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// Until its answer is read.
const REQUEST_TIME: Duration = Duration::from_secs(15);
/// After a connection could not be taken, for want of descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
#[error("http.listen = {listen}: {source}; set another address, or port 0 for any free one")]
pub struct ServeError {
    listen: SocketAddr,
    source: std::io::Error,
}

#[derive(Clone)]
struct Shown {
    metrics: Arc<Metrics>,
    registry: Arc<Registry>,
}

/// Serves `/metrics`, `/healthz` and `/readyz` as long as the runtime lives: the address that it listens on.
pub async fn serve(
    listen: SocketAddr,
    metrics: Arc<Metrics>,
    registry: Registry,
) -> Result<SocketAddr, ServeError> {
    let failed = |source| ServeError { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let app = Router::new()
        .route("/metrics", get(show_metrics))
        // Whoever can answer is alive.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(show_readiness))
        .with_state(Shown { metrics, registry: Arc::new(registry) });
    tokio::spawn(accept(listener, app));
    Ok(address)
}

/// Takes connections, whatever becomes of one.
async fn accept(listener: TcpListener, app: Router) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                tracing::debug!("a connection to http.listen was not taken: {error}");
                clock::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        open.retain(|task| !task.is_finished());
        if open.len() >= MOST_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(
            tokio::spawn(clock::timeout(REQUEST_TIME, answer(connection, app.clone()))).abort_handle(),
        );
    }
}

/// One request, and the end of the connection.
async fn answer(connection: TcpStream, app: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME).keep_alive(false);
    // Those who go away, and those who speak no HTTP, are no matter of ours.
    let _ = http.serve_connection(TokioIo::new(connection), TowerToHyperService::new(app)).await;
}

async fn show_metrics(State(shown): State<Shown>) -> impl IntoResponse {
    let mut text = String::new();
    let encoded = prometheus_client::encoding::text::encode(&mut text, &shown.registry);
    let status = if encoded.is_ok() { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    (status, [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}

/// Whether, and how many sources are refused. Not why: that names queues, buckets and keys, and those are for
/// the log alone.
async fn show_readiness(State(shown): State<Shown>) -> impl IntoResponse {
    match shown.metrics.readiness() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(_) => {
            let refused = shown.metrics.sources_refused.get();
            let sources = if refused > 0 { format!(": sources refused: {refused}") } else { String::new() };
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready{sources}; the log says why\n"))
        }
    }
}
