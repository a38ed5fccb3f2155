//! The console: one page, with nothing from outside.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use serde_json::{Value, json};

use super::Told;
use super::answer;
use super::asked::Name;

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// What the page loads.
const FILES: [(&str, &str, &str); 10] = [
    ("console.css", "text/css; charset=utf-8", include_str!("console/console.css")),
    ("icon.svg", "image/svg+xml", include_str!("console/icon.svg")),
    ("main.js", SCRIPT, include_str!("console/main.js")),
    ("actions.js", SCRIPT, include_str!("console/actions.js")),
    ("api.js", SCRIPT, include_str!("console/api.js")),
    ("card.js", SCRIPT, include_str!("console/card.js")),
    ("chart.js", SCRIPT, include_str!("console/chart.js")),
    ("dom.js", SCRIPT, include_str!("console/dom.js")),
    ("format.js", SCRIPT, include_str!("console/format.js")),
    ("why.js", SCRIPT, include_str!("console/why.js")),
];

pub(super) async fn page() -> Html<&'static str> {
    Html(include_str!("console/index.html"))
}

pub(super) async fn file(Name(name): Name) -> Response {
    match FILES.iter().find(|(of, ..)| *of == name) {
        Some((_, kind, text)) => ([(header::CONTENT_TYPE, *kind)], *text).into_response(),
        None => answer::no_such_path().await.into_response(),
    }
}

/// What this API offers, for programs.
pub(super) async fn openapi() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json"))
}

/// Who answers, and whether it takes changes.
pub(super) async fn daemon(Shared(place): Told) -> Json<Value> {
    Json(json!({
        "name": place.daemon,
        "version": env!("CARGO_PKG_VERSION"),
        "database": place.target.to_string(),
        "takes_changes": place.settings.token_file().is_some(),
    }))
}
