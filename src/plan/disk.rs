//! What the disk gives to how many requests at once, as it follows from the measured reads.
//!
//! A loader waits for the disk, then works (kernel, checksum, release), and begins again. By Little's
//! law, `m` loaders that together bring in `b` bytes a second with `c` seconds of CPU for each byte
//! have `m - b * c` requests in flight on average. Each measurement is so a point of a curve: bytes a
//! second that the disk gives by requests in flight. What loaders reach when compute takes time
//! away from them lies on the same curve.

use super::Way;
use super::profile::{Profile, ReadRate};

/// Most of a loader's time that is taken as work of its CPU: a measurement may show more of it than
/// there was time.
const MOST_CPU: f64 = 0.999;

/// The disk by one way of reading, in requests of one size. Bytes are those of such requests.
#[derive(Clone, Debug)]
pub struct DiskCurve {
    /// Requests in flight and bytes a microsecond, ascending.
    curve: Vec<(f64, f64)>,
    /// CPU time of loaders in microseconds for each byte, by how many loaders there are.
    cpu_us: Vec<(usize, f64)>,
    request_bytes: u64,
    /// Time of one loader by size of request, ascending: bytes and microseconds.
    request_us: Vec<(f64, f64)>,
}

impl DiskCurve {
    /// `gaps` is the share of requests that follow a block which is not read. None where this way
    /// was not measured.
    pub fn new(profile: &Profile, way: Way, request_bytes: u64, gaps: f64) -> Option<DiskCurve> {
        let (scattered, reads): (Vec<&ReadRate>, Vec<&ReadRate>) =
            profile.reads.iter().filter(|read| read.way == way).partition(|r| r.is_scattered);
        let mut loaders: Vec<usize> = reads.iter().map(|read| read.loaders).collect();
        loaders.sort_unstable();
        loaders.dedup();
        let fewest = *loaders.first()?;
        let (mut curve, mut cpu_us) = (vec![], vec![]);
        for count in loaders {
            let of_count = || reads.iter().filter(|read| read.loaders == count);
            let times = line(of_count().map(|read| (read.request_bytes as f64, time_us(read))));
            let cpus = line(of_count().map(|read| (read.request_bytes as f64, cpu_time_us(read))));
            let bytes = request_bytes as f64;
            let (mut time, mut cpu) = (along(&times, bytes), along(&cpus, bytes));
            if let Some(read) = scattered.iter().find(|read| read.loaders == count) {
                let share = bytes / read.request_bytes as f64;
                time += gaps * (share * time_us(read) - time);
                cpu += gaps * (share * cpu_time_us(read) - cpu);
            }
            let rate = count as f64 * bytes / time;
            let cpu = (cpu / bytes).min(MOST_CPU * count as f64 / rate);
            let waiting = count as f64 - rate * cpu;
            curve.push((waiting, rate));
            cpu_us.push((count, cpu));
        }
        curve.sort_by(|a, b| a.0.total_cmp(&b.0));
        let alone = reads.iter().filter(|read| read.loaders == fewest);
        let request_us = line(alone.map(|read| (read.request_bytes as f64, time_us(read))));
        Some(DiskCurve { curve, cpu_us, request_bytes, request_us })
    }

    /// Bytes a microsecond that so many requests in flight get together. Up to the first point,
    /// and up to one request, each gets as much as the nearest point's; beyond the last, there is
    /// no more.
    pub fn rate(&self, in_flight: f64) -> f64 {
        let (first, last) = (self.curve[0], self.curve[self.curve.len() - 1]);
        if in_flight <= first.0 {
            return first.1 * in_flight / first.0;
        }
        if in_flight >= last.0 {
            return last.1 * (in_flight.min(1.0) / last.0).max(1.0);
        }
        let after = self.curve.partition_point(|point| point.0 < in_flight);
        between(self.curve[after - 1], self.curve[after], in_flight)
    }

    /// CPU time in microseconds that each byte takes of its loader when so many are at work.
    pub fn cpu_us_per_byte(&self, loaders: usize) -> f64 {
        let points: Vec<(f64, f64)> = self.cpu_us.iter().map(|(m, us)| (*m as f64, *us)).collect();
        let (least, most) = (points[0].0, points[points.len() - 1].0);
        along(&points, (loaders as f64).clamp(least, most))
    }

    /// The bytes of the curve's requests that take as long as one request of `bytes`.
    pub fn work(&self, bytes: u64) -> f64 {
        let whole = self.request_bytes as f64;
        whole * along(&self.request_us, bytes as f64) / along(&self.request_us, whole)
    }
}

/// Time from one request of a loader to its next.
fn time_us(read: &ReadRate) -> f64 {
    read.loaders as f64 * read.request_bytes as f64 / read.bandwidth_bytes_s * 1e6
}

fn cpu_time_us(read: &ReadRate) -> f64 {
    read.cpu_ns_per_byte * read.request_bytes as f64 / 1e3
}

/// Points in ascending order, the last of those with equal places.
fn line(points: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = points.collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            *kept = *next;
        }
        same
    });
    points
}

/// The value at `place` of a line through `points`; before the first and after the last it is in
/// proportion to the place.
fn along(points: &[(f64, f64)], place: f64) -> f64 {
    let (first, last) = (points[0], points[points.len() - 1]);
    if place <= first.0 {
        return first.1 * place / first.0;
    }
    if place >= last.0 {
        return last.1 * place / last.0;
    }
    let after = points.partition_point(|point| point.0 < place);
    between(points[after - 1], points[after], place)
}

fn between(from: (f64, f64), to: (f64, f64), place: f64) -> f64 {
    from.1 + (to.1 - from.1) * (place - from.0) / (to.0 - from.0)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{self, MIB};
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-9, "{found} instead of {expected}");
    }

    #[test]
    fn the_curve_gives_back_what_was_measured() {
        let profile = fixture::profile();
        let disk = DiskCurve::new(&profile, Way::Direct, MIB, 0.0).unwrap();
        for read in profile.reads.iter().filter(|read| read.way == Way::Direct) {
            let rate = read.bandwidth_bytes_s / 1e6;
            let cpu = disk.cpu_us_per_byte(read.loaders);
            close(cpu, read.cpu_ns_per_byte / 1e3);
            close(disk.rate(read.loaders as f64 - rate * cpu), rate);
        }
        close(disk.rate(100.0), 1200.0);
        close(disk.rate(0.5), disk.rate(0.25) * 2.0);
    }

    #[test]
    fn small_requests_cost_more_for_each_byte() {
        let mut profile = fixture::profile();
        profile.reads.push(ReadRate {
            request_bytes: MIB / 4,
            bandwidth_bytes_s: profile.reads[0].bandwidth_bytes_s / 2.0,
            ..profile.reads[0]
        });
        let disk = DiskCurve::new(&profile, Way::Mapped, MIB, 0.0).unwrap();
        close(disk.work(MIB), MIB as f64);
        close(disk.work(2 * MIB), 2.0 * MIB as f64);
        close(disk.work(MIB / 4), MIB as f64 / 2.0);
        close(disk.work(MIB / 8), MIB as f64 / 4.0);
    }

    #[test]
    fn blocks_behind_gaps_come_as_they_were_measured() {
        let mut profile = fixture::profile();
        let along = profile.reads[0];
        let slow = along.bandwidth_bytes_s / 2.0;
        profile.reads.push(ReadRate { bandwidth_bytes_s: slow, is_scattered: true, ..along });
        let rate = |gaps: f64| {
            let disk = DiskCurve::new(&profile, Way::Mapped, MIB, gaps).unwrap();
            let cpu = disk.cpu_us_per_byte(1);
            let times = (0..60).fold((0.0, 10_000.0), |(low, high), _| {
                let rate: f64 = (low + high) / 2.0;
                if disk.rate(1.0 - rate * cpu) > rate { (rate, high) } else { (low, rate) }
            });
            times.0
        };
        close(rate(0.0), along.bandwidth_bytes_s / 1e6);
        close(rate(1.0), slow / 1e6);
        close(1.0 / rate(0.5), (1.0 / rate(0.0) + 1.0 / rate(1.0)) / 2.0);
    }

    #[test]
    fn a_way_that_was_not_measured_has_no_disk() {
        let mut profile = fixture::profile();
        profile.reads.retain(|read| read.way == Way::Mapped);
        assert!(DiskCurve::new(&profile, Way::Direct, MIB, 0.0).is_none());
    }
}
