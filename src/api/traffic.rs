//! What was asked and how it was answered: answers by route and status, times by route and model,
//! and a line of the log for each request at the level debug.

use super::caller::Remote;
use crate::sys::lock::lock;
use axum::http::StatusCode;
use hyper::body::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

/// Times, in microseconds, up to which requests are counted together.
pub const BOUNDS_US: [u64; 14] = [
    1_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// Routes of one model, of which there may be any number, that have times of their own; those of
/// others are counted without their names.
const MAX_SERIES: usize = 48;

/// What was answered since the daemon's start.
#[derive(Debug)]
pub struct Traffic {
    /// When that was.
    pub begin: SystemTime,
    figures: Mutex<Figures>,
}

/// Method and path of a route, as `routes` has them: of these there are finitely many.
pub type Route = (&'static str, &'static str);

/// The figures of [`Traffic`] at one moment.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Answers by route and status.
    pub answers: BTreeMap<(Route, u16), u64>,
    /// Times of the answered requests by route and model; without one for routes of no model, and
    /// for requests that were refused.
    pub times: BTreeMap<(Route, Option<Arc<str>>), Times>,
}

/// How long requests took.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// Requests by the first of [`BOUNDS_US`] that they took no longer than, and those beyond all.
    pub counts: [u64; BOUNDS_US.len() + 1],
    /// The sum of their times.
    pub sum_us: u64,
}

/// The model that has answered; an extension of its response.
#[derive(Clone, Debug)]
pub struct AnsweredBy(
    /// Its name.
    pub Arc<str>,
);

impl Default for Traffic {
    fn default() -> Traffic {
        Traffic { begin: SystemTime::now(), figures: Mutex::default() }
    }
}

impl Traffic {
    /// The figures now.
    pub fn figures(&self) -> Figures {
        lock(&self.figures).clone()
    }
}

impl Figures {
    fn count(&mut self, route: Route, status: StatusCode, model: Option<Arc<str>>, us: u64) {
        *self.answers.entry((route, status.as_u16())).or_default() += 1;
        let mut key = (route, model);
        if self.times.len() >= MAX_SERIES && !self.times.contains_key(&key) {
            key.1 = None;
        }
        let times = self.times.entry(key).or_default();
        times.counts[BOUNDS_US.partition_point(|bound| *bound < us)] += 1;
        times.sum_us = times.sum_us.saturating_add(us);
    }
}

/// A request from its head to the last byte of its answer; counted and logged when it is dropped.
#[derive(Debug)]
pub struct Exchange {
    traffic: Arc<Traffic>,
    remote: Remote,
    route: Route,
    begin: Instant,
    /// `None` until there is an answer, and where the client left before.
    status: Option<StatusCode>,
    model: Option<Arc<str>>,
    bytes: u64,
}

impl Exchange {
    /// A request's head is there.
    pub fn begin(traffic: &Arc<Traffic>, remote: Remote, route: Route) -> Exchange {
        Exchange {
            traffic: Arc::clone(traffic),
            remote,
            route,
            begin: Instant::now(),
            status: None,
            model: None,
            bytes: 0,
        }
    }

    /// It has an answer, whose body is to come.
    pub fn answer(&mut self, status: StatusCode, by: Option<&AnsweredBy>) {
        self.status = Some(status);
        self.model = by.map(|AnsweredBy(model)| Arc::clone(model));
    }

    /// A piece of the answer's body is written.
    pub fn write(&mut self, piece: &Bytes) {
        self.bytes += piece.len() as u64;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let us = u64::try_from(self.begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        let status = self.status.map(|status| status.as_u16().to_string());
        let (method, path) = self.route;
        log::debug!(
            "{method} {path} {} {} bytes {us} us {}",
            status.as_deref().unwrap_or("no answer"),
            self.bytes,
            self.remote
        );
        if let Some(status) = self.status {
            lock(&self.traffic.figures).count(self.route, status, self.model.take(), us);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::routes::{labels, routes};
    use super::*;
    use axum::http::Method;

    #[test]
    fn times_are_counted_by_their_bounds() {
        let mut figures = Figures::default();
        let route = labels(&Method::GET, "/v2");
        let times = [0, 1_000, 1_001, 60_000_000, 60_000_001, u64::MAX];
        times.into_iter().for_each(|us| figures.count(route, StatusCode::OK, None, us));
        let found = &figures.times[&(route, None)];
        let of = |index: usize| found.counts[index];
        assert_eq!([of(0), of(1), of(2), of(13), of(14)], [2, 1, 0, 1, 2]);
        assert_eq!(found.sum_us, u64::MAX);
        assert_eq!(figures.answers[&(route, 200)], 6);
    }

    /// Whoever may install could have made as many series as models.
    #[test]
    fn a_thousand_models_take_no_more_than_a_few() {
        let mut figures = Figures::default();
        let route = labels(&Method::POST, "/v2/models/m/infer");
        for number in 0..1000 {
            // The longest name that a model may have.
            let model = format!("{number:0128}");
            figures.count(route, StatusCode::OK, Some(model.into()), 1);
            figures.count(route, StatusCode::NOT_FOUND, None, 1);
        }
        assert_eq!(figures.times.len(), MAX_SERIES);
        let count = |times: &Times| times.counts.iter().sum::<u64>();
        assert_eq!(figures.times.values().map(count).sum::<u64>(), 2000);
        let series = size_of::<(Route, Option<Arc<str>>)>() + size_of::<Times>() + 128 + 16;
        let routes = routes().count() + 1;
        let answers = routes * 16 * size_of::<((Route, u16), u64)>();
        // A tree's leaves are half full at the least.
        let most = 2 * (MAX_SERIES + routes) * series + 2 * answers;
        assert!(most <= 128 << 10, "{most}");
    }
}
