//! What is chosen for a target.

use super::super::fixture::{self, MIB};
use super::super::{Passing, PlanError, Usage, Way, forecast, plan};
use super::*;

fn wish(budget_mib: u64) -> Wish {
    Wish { budget_bytes: budget_mib * MIB, tokens: 128, usage: Usage::Cyclic }
}

fn latency(ms: f64) -> Target {
    Target { latency_us: Some(ms * 1e3), accuracy: None }
}

fn accuracy(accuracy: f64) -> Target {
    Target { latency_us: None, accuracy: Some(accuracy) }
}

/// A disk of a tenth: all of f32 takes 6.7 s, of a2 half a second, and computing 370 ms.
fn slow() -> Profile {
    let mut profile = fixture::profile();
    profile.reads.iter_mut().for_each(|read| read.bandwidth_bytes_s /= 10.0);
    profile
}

fn chosen(budget_mib: u64, target: &Target) -> Result<Chosen, TargetError> {
    let (profile, ladder) = (slow(), fixture::ladder());
    plan_target(&profile, &ladder, &wish(budget_mib), target, &Overrides::default())
}

/// Whether a choice is what it says.
fn check(chosen: &Chosen, budget_mib: u64) {
    let (profile, ladder) = (slow(), fixture::ladder());
    let plan = &chosen.planned.plan;
    assert_eq!(plan.variants, ladder.variants(&chosen.rungs));
    assert_eq!(chosen.bytes, ladder.bytes(&chosen.rungs));
    assert_eq!(chosen.accuracy, ladder.accuracy(&chosen.rungs));
    assert!(chosen.planned.granted_bytes <= budget_mib * MIB);
    let derived = profile.with_choice(&ladder, &chosen.rungs).unwrap();
    let again = forecast(&derived, plan, 128, Passing::Later).unwrap();
    assert_eq!(again, chosen.planned.forecast);
}

#[test]
fn a_latency_is_met_by_as_much_accuracy_as_it_lets_in() {
    let mut last = 0.0;
    for ms in [600.0, 700.0, 1000.0, 2000.0, 8000.0] {
        let found = chosen(64, &latency(ms)).unwrap();
        check(&found, 64);
        let took_us = found.planned.forecast.latency_us;
        assert!(took_us <= ms * 1e3 * AIM, "{took_us} of {ms} ms");
        assert!(found.accuracy >= last, "{} after {last}", found.accuracy);
        last = found.accuracy;
    }
    assert_eq!(last, 1.0, "8 s are enough for all of f32");
    // No time is left over that a further step would have used.
    let found = chosen(64, &latency(700.0)).unwrap();
    assert!(found.planned.forecast.latency_us > 0.99 * 700e3 * AIM, "{:?}", found.planned);
}

#[test]
fn more_memory_is_more_accurate() {
    let found: Vec<f64> =
        [48, 64, 128, 256, 1300].map(|mib| chosen(mib, &latency(520.0)).unwrap().accuracy).to_vec();
    assert!(found.is_sorted(), "{found:?}");
    assert!(found[4] > found[0], "{found:?}");
}

#[test]
fn an_accuracy_is_had_in_the_least_time() {
    let mut last_us = 0.0;
    for least in [0.5, 0.9, 0.97, 0.99, 0.999, 1.0] {
        let found = chosen(64, &accuracy(least)).unwrap();
        check(&found, 64);
        assert!(found.accuracy >= least - 1e-11);
        let took_us = found.planned.forecast.latency_us;
        assert!(took_us >= 0.98 * last_us, "{took_us} for {least} after {last_us}");
        last_us = took_us;
    }
}

#[test]
fn what_fits_needs_no_decoding() {
    // All of f32 stays, and nothing is faster: a lower accuracy does not help.
    let found = chosen(1300, &accuracy(0.9)).unwrap();
    assert_eq!((found.accuracy, found.bits), (1.0, 32.0));
    assert!(found.planned.fits);
}

#[test]
fn both_are_met_or_what_could_be_is_told() {
    let found = chosen(64, &Target { accuracy: Some(0.9), ..latency(600.0) }).unwrap();
    check(&found, 64);
    assert_eq!(found, chosen(64, &latency(600.0)).unwrap(), "the best within the time");
    let wanted = Target { accuracy: Some(0.9995), ..latency(620.0) };
    let error = chosen(64, &wanted).unwrap_err();
    let TargetError::Both { best, least_us, .. } = error else { panic!("{error}") };
    assert_eq!(best, chosen(64, &latency(620.0)).unwrap().accuracy);
    let text = error.to_string();
    assert!(text.contains("within 620 ms with an accuracy of 0.9995: the best"), "{text}");
    let longer = Target { latency_us: Some(least_us), ..wanted };
    assert!(chosen(64, &longer).unwrap().accuracy >= 0.9995 - 1e-11);
}

#[test]
fn a_latency_that_cannot_be_met_names_the_least_that_can() {
    let error = chosen(30, &latency(450.0)).unwrap_err();
    let TargetError::TooSoon { least_us, more_bytes, .. } = error else { panic!("{error}") };
    let text = error.to_string();
    assert!(text.starts_with("bert with 128 tokens cannot answer within 450 ms: "), "{text}");
    assert!(text.contains(" more of memory"), "{text}");
    check(&chosen(30, &Target { latency_us: Some(least_us), accuracy: None }).unwrap(), 30);
    assert!(chosen(30, &Target { latency_us: Some(0.9 * least_us), accuracy: None }).is_err());
    let enough = 30 + more_bytes.unwrap().div_ceil(MIB);
    check(&chosen(enough, &latency(450.0)).unwrap(), enough);
    let text = chosen(30, &latency(10.0)).unwrap_err().to_string();
    assert!(text.contains("more memory alone would not do"), "{text}");
}

#[test]
fn nonsense_is_refused() {
    let check = |target: Target, words: &str| {
        let error = chosen(64, &target).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    check(Target::default(), "there is no target");
    for ms in [0.0, -1.0, f64::NAN, f64::INFINITY, 365.0 * 86_400e3] {
        check(latency(ms), "cannot be aimed at\nit is more than 0 and at most an hour");
    }
    for part in [0.0, -0.5, 1.01, 2.0, f64::NAN] {
        check(accuracy(part), "cannot be aimed at\nit is more than 0 and at most 1");
        check(Target { accuracy: Some(part), ..latency(500.0) }, "cannot be aimed at");
    }
    let (profile, mut ladder) = (slow(), fixture::ladder());
    let profile = profile.with_choice(&ladder, &[1; 144]).unwrap();
    ladder.tensors.iter_mut().for_each(|tensor| _ = tensor.rungs.remove(0));
    let found = plan_target(&profile, &ladder, &wish(64), &accuracy(1.0), &Overrides::default());
    let text = found.unwrap_err().to_string();
    assert!(text.contains("no variants with an accuracy of 1: the best have 0.998"), "{text}");
    let text = chosen(20, &latency(600.0)).unwrap_err();
    assert!(matches!(text, TargetError::Plan(PlanError::Budget { .. })), "{text}");
    let profile = Profile { rates: vec![], ..fixture::profile() };
    let ladder = fixture::ladder();
    let found = plan_target(&profile, &ladder, &wish(64), &latency(600.0), &Overrides::default());
    assert!(matches!(found, Err(TargetError::Ladder(_))));
}

#[test]
fn what_is_set_by_hand_stays() {
    let (profile, ladder) = (slow(), fixture::ladder());
    let fixed = Overrides {
        source: Some(Way::Direct),
        loaders: Some(2),
        window_bytes: Some(8 * MIB),
        pin_bytes: Some(4 * MIB),
        ..Overrides::default()
    };
    let found = plan_target(&profile, &ladder, &wish(64), &latency(1000.0), &fixed).unwrap();
    let plan = &found.planned.plan;
    assert_eq!((plan.source, plan.loaders), (Way::Direct, 2));
    assert_eq!((plan.window_bytes, plan.pin_bytes), (8 * MIB, 4 * MIB));
}

/// A choice of the measured variant is planned as that variant is.
#[test]
fn a_ladder_of_one_rung_changes_nothing() {
    let (profile, mut ladder) = (slow(), fixture::ladder());
    ladder.tensors.iter_mut().for_each(|tensor| tensor.rungs.truncate(1));
    let found =
        plan_target(&profile, &ladder, &wish(64), &accuracy(1.0), &Overrides::default()).unwrap();
    let usual = plan(&profile, &wish(64), &Overrides::default()).unwrap();
    assert_eq!(found.planned.forecast.bytes_read, usual.forecast.bytes_read);
    assert!((found.planned.forecast.latency_us / usual.forecast.latency_us - 1.0).abs() < 1e-6);
}
