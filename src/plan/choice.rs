//! The profile of a choice, as it follows from the profile of one variant and the codecs' rates.

use super::ladder::{Ladder, LadderError, LadderTensor, Part, Rung};
use super::profile::{BlockRun, PassTime, Profile};

/// What the variant of a derived profile is called where tensors differ.
const MIXED: &str = "mixed";

impl Profile {
    /// What passes by a choice take on this board: blocks from the ladder, and computing corrected
    /// by how much longer or shorter weights of another codec take than those that were measured.
    /// That is a matter of decoding and of memory, once a pass however many tokens it has, so it
    /// goes into what layers take beside their tokens, which is not below 0. Whole passes change by
    /// as much as their layers do.
    ///
    /// # Errors
    /// A choice or a ladder of another tape; [`LadderError::Rate`] where a codec was not measured;
    /// [`LadderError::Foreign`] where no tensor has the variant that was.
    pub fn with_choice(&self, ladder: &Ladder, choice: &[usize]) -> Result<Profile, LadderError> {
        ladder.check_choice(choice)?;
        self.check_tape(ladder)?;
        let mut derived = self.clone();
        derived.variant = variant_of(ladder, choice);
        for (layer, parts) in derived.layers.iter_mut().zip(&ladder.tape) {
            let (mut runs, mut more_us) = (vec![], 0.0);
            for part in parts {
                match part {
                    Part::Fixed(blocks) => runs.extend_from_slice(blocks),
                    Part::Tensor(index) => {
                        let tensor = &ladder.tensors[*index];
                        let rung = &tensor.rungs[choice[*index]];
                        runs.extend(tensor.runs(rung));
                        more_us += self.more_us(ladder, tensor, rung)?;
                    }
                }
            }
            layer.blocks = BlockRun::joined(runs);
            layer.decode_us = (layer.decode_us + more_us).max(0.0);
            layer.fixed_us = (layer.fixed_us + more_us / self.layer_threads as f64).max(0.0);
        }
        derived.passes = self.passes.iter().map(|pass| self.pass_by(&derived, pass)).collect();
        Ok(derived)
    }

    /// A measured pass as it would be with the layers of another profile.
    fn pass_by(&self, derived: &Profile, pass: &PassTime) -> PassTime {
        let [was, is] = [self, derived].map(|profile| profile.layers_us(pass.tokens as f64));
        // A pass of no time would be damage.
        let factor = if was > 0.0 && is > 0.0 { is / was } else { 1.0 };
        PassTime { latency_us: pass.latency_us * factor, ..*pass }
    }

    /// Whether passes by every choice of a ladder can be forecast.
    ///
    /// # Errors
    /// As [`Profile::with_choice`]; a measured variant whose layers have other bytes on the ladder.
    pub fn check_ladder(&self, ladder: &Ladder) -> Result<(), LadderError> {
        ladder.check()?;
        self.check_tape(ladder)?;
        for tensor in &ladder.tensors {
            tensor
                .rungs
                .iter()
                .try_for_each(|rung| self.more_us(ladder, tensor, rung).map(drop))?;
        }
        let mut layers = self.layers.iter().zip(&ladder.tape);
        let is_own = |parts: &Vec<Part>, bytes: u64| match self.measured_bytes(ladder, parts) {
            Some(measured) => measured == bytes,
            // A file of the measured variant is no longer there.
            None => true,
        };
        match layers.all(|(layer, parts)| is_own(parts, layer.tape_bytes())) {
            true => Ok(()),
            false => Err(LadderError::Foreign { variant: self.variant.clone() }),
        }
    }

    /// Bytes of a layer in the measured variant; None where a tensor lacks it.
    fn measured_bytes(&self, ladder: &Ladder, parts: &[Part]) -> Option<u64> {
        let bytes = parts.iter().map(|part| match part {
            Part::Fixed(blocks) => {
                Some(blocks.iter().map(|run| run.count as u64 * run.bytes).sum::<u64>())
            }
            Part::Tensor(index) => {
                let tensor = &ladder.tensors[*index];
                Some(tensor.rungs[tensor.rung_of(&self.variant).ok()?].bytes())
            }
        });
        bytes.sum()
    }

    /// How a tensor was stored when it was measured: by its rung of that variant, or where it has
    /// none any more as other tensors are.
    fn measured_codec<'a>(
        &self,
        ladder: &'a Ladder,
        tensor: &'a LadderTensor,
    ) -> Result<&'a str, LadderError> {
        let codec =
            |of: &'a LadderTensor| Some(of.rungs[of.rung_of(&self.variant).ok()?].codec.as_str());
        let found = codec(tensor).or_else(|| ladder.tensors.iter().find_map(codec));
        found.ok_or_else(|| LadderError::Foreign { variant: self.variant.clone() })
    }

    fn check_tape(&self, ladder: &Ladder) -> Result<(), LadderError> {
        let (found, expected) = (ladder.tape.len(), self.layers.len());
        match found == expected {
            true => Ok(()),
            false => Err(LadderError::Tape { found, expected }),
        }
    }

    /// Time of one core that a pass takes more with a tensor in this rung than with it in the
    /// variant that was measured.
    fn more_us(
        &self,
        ladder: &Ladder,
        tensor: &LadderTensor,
        rung: &Rung,
    ) -> Result<f64, LadderError> {
        let measured = self.measured_codec(ladder, tensor)?;
        if measured == rung.codec {
            return Ok(0.0);
        }
        let more_ns = self.rate_ns(&rung.codec)? - self.rate_ns(measured)?;
        Ok(tensor.elements as f64 * more_ns / 1e3)
    }

    fn rate_ns(&self, codec: &str) -> Result<f64, LadderError> {
        let found = self.rates.iter().find(|rate| rate.codec == codec);
        let rate = found.ok_or_else(|| LadderError::Rate { codec: codec.to_owned() })?;
        Ok(rate.ns_per_weight)
    }
}

impl LadderTensor {
    /// The blocks of a rung, each with its share of the elements.
    fn runs(&self, rung: &Rung) -> impl Iterator<Item = BlockRun> {
        let share = self.elements as f64 / rung.bytes() as f64;
        let elements = move |run: &BlockRun| (run.bytes as f64 * share).round() as u64;
        rung.blocks.iter().map(move |run| BlockRun { elements: elements(run), ..*run })
    }
}

/// The variant that all tensors have.
fn variant_of(ladder: &Ladder, choice: &[usize]) -> String {
    let mut variants = ladder.variants(choice);
    variants.dedup();
    match variants.len() {
        1 => variants.swap_remove(0),
        _ => MIXED.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::super::{Passing, forecast};
    use super::*;

    fn choice_of(ladder: &Ladder, variant: &str) -> Vec<usize> {
        ladder.choice_of(&vec![variant.to_owned(); ladder.tensors.len()]).unwrap()
    }

    #[test]
    fn the_measured_variant_is_as_it_was_measured() {
        let (profile, ladder) = (fixture::profile(), fixture::ladder());
        profile.check_ladder(&ladder).unwrap();
        let derived = profile.with_choice(&ladder, &choice_of(&ladder, "f32")).unwrap();
        assert_eq!(derived.variant, "f32");
        assert_eq!(derived.passes, profile.passes);
        assert!(derived.is_of(std::iter::repeat_n(fixture::MIB, 1152)));
        let plan = fixture::plan();
        let [was, is] =
            [&profile, &derived].map(|p| forecast(p, &plan, 128, Passing::Later).unwrap());
        assert!((was.latency_us / is.latency_us - 1.0).abs() < 1e-9, "{was:?} {is:?}");
    }

    #[test]
    fn computing_follows_the_codecs_rates() {
        let (profile, ladder) = (fixture::profile(), fixture::ladder());
        let choice = choice_of(&ladder, "a5");
        let derived = profile.with_choice(&ladder, &choice).unwrap();
        assert_eq!(derived.tape_bytes(), ladder.bytes(&choice));
        // 12 Mi weights a layer, 0.2 ns more for each, on two threads.
        let more_us = 0.2e-3 * f64::from(12 << 20);
        for (was, is) in profile.layers.iter().zip(&derived.layers) {
            assert!((is.fixed_us - was.fixed_us - more_us / 2.0).abs() < 1e-6);
            assert!((is.decode_us - more_us).abs() < 1e-6);
            assert_eq!(is.per_token_us, was.per_token_us);
        }
        for (threads, tokens) in [(2, 128), (2, 16), (1, 128)] {
            let sum = |of: &Profile| of.compute_us(threads, tokens).iter().sum::<f64>();
            // As many times as long as the layers' lines as whole passes were.
            let factor = sum(&profile) / profile.layers_us(tokens as f64);
            let expected = sum(&profile) + factor * 24.0 * more_us / 2.0;
            assert!((sum(&derived) / expected - 1.0).abs() < 1e-9, "{threads} {tokens}");
        }
    }

    #[test]
    fn what_is_faster_than_measured_takes_no_less_than_its_tokens() {
        let (mut profile, ladder) = (fixture::profile(), fixture::ladder());
        profile.rates[0].ns_per_weight = 100.0;
        let derived = profile.with_choice(&ladder, &choice_of(&ladder, "a2")).unwrap();
        assert!(derived.layers.iter().all(|layer| layer.fixed_us == 0.0));
        assert!(derived.passes.iter().all(|pass| pass.latency_us > 0.0));
    }

    #[test]
    fn layers_are_shared_out_by_elements() {
        let (profile, ladder) = (fixture::profile(), fixture::ladder());
        let mut choice = choice_of(&ladder, "a2");
        choice[0] = 0;
        let derived = profile.with_choice(&ladder, &choice).unwrap();
        assert_eq!(derived.variant, MIXED);
        let runs = &derived.layers[0].blocks;
        let elements: u64 = runs.iter().map(|run| run.count as u64 * run.elements).sum();
        assert_eq!(elements, 12 << 20);
        assert_eq!((runs[0].count, runs[0].elements), (4, 1 << 18));
        assert_eq!((runs[1].count, runs[1].elements), (3, 1 << 20));
    }

    fn fixture_without(variant: &str) -> Ladder {
        let mut ladder = fixture::ladder();
        let tensors = ladder.tensors.iter_mut();
        tensors.for_each(|tensor| tensor.rungs.retain(|rung| rung.variant != variant));
        ladder
    }

    #[test]
    fn what_was_not_measured_is_refused() {
        let (mut profile, ladder) = (fixture::profile(), fixture::ladder());
        profile.rates.retain(|rate| rate.codec != "a3");
        let error = profile.check_ladder(&ladder).unwrap_err().to_string();
        assert!(error.contains("how fast a3 is decoded was not measured"), "{error}");
        assert!(profile.with_choice(&ladder, &choice_of(&ladder, "a4")).is_ok());
        assert!(profile.with_choice(&ladder, &choice_of(&ladder, "a3")).is_err());
        profile.layers[3].blocks[0].count += 1;
        let error = profile.check_ladder(&fixture_without("a3")).unwrap_err().to_string();
        assert!(error.contains("the profile of f32 is of another tape"), "{error}");
        profile.layers.pop();
        assert!(matches!(profile.check_ladder(&ladder), Err(LadderError::Tape { .. })));
        let foreign = Profile { variant: "q8".into(), ..fixture::profile() };
        let error = foreign.check_ladder(&ladder).unwrap_err().to_string();
        assert!(error.contains("the profile of q8 is of another tape"), "{error}");
    }

    /// A file of the measured variant may be damaged: its tensors have other rungs then.
    #[test]
    fn a_tensor_without_the_measured_variant_was_stored_as_others_are() {
        let (profile, mut ladder) = (fixture::profile(), fixture::ladder());
        let choice = choice_of(&ladder, "a4");
        let derived = profile.with_choice(&ladder, &choice).unwrap();
        ladder.tensors[7].rungs.remove(0);
        profile.check_ladder(&ladder).unwrap();
        assert_eq!(profile.with_choice(&ladder, &choice_of(&ladder, "a4")).unwrap(), derived);
    }
}
