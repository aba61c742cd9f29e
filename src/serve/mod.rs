//! What other programs ask over HTTP: metrics and health.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::ingest::metrics::Metrics;

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
#[error("http.listen = {listen}: {source}; set another address, or port 0 for any free one")]
pub struct ServeError {
    /// The address.
    listen: SocketAddr,
    /// What the system said.
    source: std::io::Error,
}

#[derive(Clone)]
struct Shown {
    metrics: Arc<Metrics>,
    registry: Arc<Registry>,
}

/// Serves `/metrics`, `/healthz` and `/readyz` as long as the runtime lives: the address that it listens on.
pub async fn serve(listen: SocketAddr, metrics: Arc<Metrics>, registry: Registry) -> Result<SocketAddr, ServeError> {
    let failed = |source| ServeError { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let app = Router::new()
        .route("/metrics", get(show_metrics))
        // Whoever can answer is alive.
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(show_readiness))
        .with_state(Shown { metrics, registry: Arc::new(registry) });
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!("metrics and health are no longer served: {error}");
        }
    });
    Ok(address)
}

async fn show_metrics(State(shown): State<Shown>) -> impl IntoResponse {
    let mut text = String::new();
    let encoded = prometheus_client::encoding::text::encode(&mut text, &shown.registry);
    let status = if encoded.is_ok() { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    (status, [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}

async fn show_readiness(State(shown): State<Shown>) -> impl IntoResponse {
    match shown.metrics.readiness() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
    }
}
