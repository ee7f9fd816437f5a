//! Which path leads where.

use super::envelope::refuse;
use super::error::ApiError;
use super::rights::require;
use super::state::Api;
use super::{
    docs, generate, install, metrics, oip, openai, plan, repository, show, stats, trace, versions,
};
use crate::daemon::rights::Right;
use crate::wire::quote::{method_name, quote};
use axum::Router;
use axum::extract::Request as HttpRequest;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use axum::routing::{MethodRouter, delete, get, post};
use std::sync::Arc;

/// A method, a path, what callers need to be allowed, and what answers there.
type Route = (&'static str, &'static str, Option<Right>, fn() -> MethodRouter<Arc<Api>>);

const INFER: Option<Right> = Some(Right::Infer);
const LOAD: Option<Right> = Some(Right::Load);
const INSTALL: Option<Right> = Some(Right::Install);

/// All routes; `openapi.json` beside this file describes each.
#[rustfmt::skip]
const ROUTES: &[Route] = &[
    ("GET", "/v2", None, || get(oip::server_metadata)),
    ("GET", "/v2/health/live", None, || get(oip::live)),
    ("GET", "/v2/health/ready", None, || get(oip::ready)),
    ("GET", "/v2/models/stats", None, || get(stats::models)),
    ("GET", "/v2/models/{model}", None, || get(oip::model_metadata)),
    ("GET", "/v2/models/{model}/ready", None, || get(oip::model_ready)),
    ("POST", "/v2/models/{model}/infer", INFER, || post(oip::infer)),
    ("POST", "/v2/models/{model}/trace", INFER, || post(trace::trace)),
    ("GET", "/v2/models/{model}/plan", None, || get(plan::plan)),
    ("GET", "/v2/models/{model}/stats", None, || get(stats::model)),
    ("GET", "/v2/models/{model}/versions/{version}", None, || get(oip::model_metadata)),
    ("GET", "/v2/models/{model}/versions/{version}/ready", None, || get(oip::model_ready)),
    ("POST", "/v2/models/{model}/versions/{version}/infer", INFER, || post(oip::infer)),
    ("GET", "/v2/models/{model}/versions/{version}/stats", None, || get(stats::model)),
    ("GET", "/v2/repository/index", None, || get(repository::index)),
    ("POST", "/v2/repository/index", None, || post(repository::index)),
    ("POST", "/v2/repository/install", INSTALL, || post(install::install)),
    ("POST", "/v2/repository/gc", INSTALL, || post(versions::collect)),
    ("POST", "/v2/repository/models/{model}/load", LOAD, || post(repository::load)),
    ("POST", "/v2/repository/models/{model}/unload", LOAD, || post(repository::unload)),
    ("POST", "/v2/repository/models/{model}/profile", LOAD, || post(plan::profile)),
    ("POST", "/v2/repository/models/{model}/use", INSTALL, || post(versions::use_version)),
    ("POST", "/v2/repository/models/{model}/rollback", INSTALL, || post(versions::roll_back)),
    ("GET", "/v2/repository/models/{model}/versions", None, || get(versions::list)),
    ("DELETE", "/v2/repository/models/{model}", INSTALL, || delete(versions::remove_model)),
    ("GET", "/v2/repository/models/{model}/versions/{version}", None, || get(show::show)),
    ("DELETE", "/v2/repository/models/{model}/versions/{version}", INSTALL, || delete(versions::remove)),
    ("GET", "/v1/models", None, || get(openai::models)),
    ("GET", "/v1/models/{model}", None, || get(openai::model)),
    ("POST", "/v1/embeddings", INFER, || post(openai::embeddings)),
    ("POST", "/v1/completions", INFER, || post(generate::completions)),
    ("POST", "/v1/chat/completions", INFER, || post(generate::chat)),
    ("GET", "/metrics", None, || get(metrics::metrics)),
    ("GET", "/docs", None, || get(docs::page)),
    ("GET", "/openapi.json", None, || get(docs::document)),
];

/// Method and path of each route, and the right that a caller needs.
pub fn routes() -> impl Iterator<Item = (&'static str, &'static str, Option<Right>)> {
    ROUTES.iter().map(|(method, path, right, _)| (*method, *path, *right))
}

/// Method and template of the route that a request leads to, of which there are finitely many;
/// "other" twice where it leads nowhere. HEAD leads where GET does.
pub fn labels(method: &Method, path: &str) -> (&'static str, &'static str) {
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    let here = routes().filter(|(of, template, _)| *of == method && is_path_of(template, path));
    // A fixed name comes before one that may be any.
    let nearest = here.min_by_key(|(_, template, _)| template.matches('{').count());
    nearest.map_or(("other", "other"), |(method, template, _)| (method, template))
}

/// The router of all routes.
pub fn router(api: Arc<Api>) -> Router {
    let add = |router: Router<_>, (_, path, right, handler): &Route| match right {
        Some(right) => router.route(path, require(*right, handler())),
        None => router.route(path, handler()),
    };
    ROUTES
        .iter()
        .fold(Router::new(), add)
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(api)
}

async fn unknown_path(request: HttpRequest) -> Response {
    let path = quote(request.uri().path());
    let error =
        ApiError::not_found(format!("there is nothing at {path}; GET /docs lists all there is"));
    refuse(request.uri().path(), error)
}

async fn wrong_method(request: HttpRequest) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    let here = routes().filter(|(_, template, _)| is_path_of(template, path));
    let allowed: Vec<_> = here.map(|(method, ..)| method).collect();
    let (method, place) = (method_name(method.as_str()), quote(path));
    let message = format!("{method} is not allowed for {place}: use {}", allowed.join(" or "));
    let error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message);
    let mut response = refuse(path, error);
    if let Ok(allowed) = HeaderValue::from_str(&allowed.join(", ")) {
        response.headers_mut().insert(header::ALLOW, allowed);
    }
    response
}

/// Whether `path` is one that `template` stands for.
fn is_path_of(template: &str, path: &str) -> bool {
    let is_same = |(part, segment): (&str, &str)| {
        part == segment || part.starts_with('{') && !segment.is_empty()
    };
    template.split('/').count() == path.split('/').count()
        && template.split('/').zip(path.split('/')).all(is_same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::manifest::is_model_name;

    #[test]
    fn each_route_leads_to_itself() {
        for (method, path, _) in routes() {
            let some = path.replace("{model}", "m").replace("{version}", "7");
            assert_eq!(labels(&method.parse().unwrap(), &some), (method, path));
        }
        assert_eq!(labels(&Method::HEAD, "/v2"), ("GET", "/v2"));
        for (method, path) in [
            (Method::GET, "/"),
            (Method::GET, "/v2/models/"),
            (Method::GET, "/v2/models/a/b/c"),
            (Method::PUT, "/v2"),
            (Method::OPTIONS, "*"),
        ] {
            assert_eq!(labels(&method, path), ("other", "other"), "{path}");
        }
    }

    /// The metadata of a model called `stats` were the statistics of all models.
    #[test]
    fn no_model_has_the_name_of_a_route() {
        let paths = || routes().map(|(_, path, _)| path);
        let mut clashes = 0;
        for open in paths() {
            for fixed in paths().filter(|fixed| *fixed != open && is_path_of(open, fixed)) {
                let parts = open.split('/').zip(fixed.split('/'));
                let named = parts.filter(|(part, name)| *part == "{model}" && part != name);
                clashes +=
                    named.inspect(|(_, name)| assert!(!is_model_name(name), "{fixed}")).count();
            }
        }
        assert_eq!(clashes, 1, "one is known");
    }
}
