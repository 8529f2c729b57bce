//! The page: files that are part of the binary, so that it works without any other place.
//!
//! `page.js` takes what `/live` says and has `graph.js` draw the mesh and `lists.js` fill the tables. Nothing here is written by a generator.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

/// Nothing may be loaded but these files, nothing sent elsewhere, and no page may frame this one.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Where each file is found, its type and its text.
const FILES: [(&str, &str, &str); 5] = [
    ("/", "text/html; charset=utf-8", include_str!("index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("style.css")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("page.js")),
    ("/graph.js", "text/javascript; charset=utf-8", include_str!("graph.js")),
    ("/lists.js", "text/javascript; charset=utf-8", include_str!("lists.js")),
];

/// The routes of all files.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES
        .into_iter()
        .fold(Router::new(), |router, (path, kind, text)| router.route(path, get(move || file(kind, text))))
}

async fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another version of weft has other files.
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_for_its_own_files_only_and_takes_no_text_for_markup() {
        for (path, _, text) in FILES {
            for word in
                ["http:", "https:", "//cdn", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                let is_namespace = text.matches(word).count() == text.matches("http://www.w3.org/2000/svg").count();
                assert!(!text.contains(word) || (word == "http:" && is_namespace), "{path}: {word}");
            }
        }
    }
}
