//! A loaded model: its graph in memory, its tape on disk.

use super::choice::{Choice, Variants};
use super::config::{DiskKind, Policy, checked_variant};
use super::error::EngineError;
use super::ladder;
use super::needs::{ladder_bytes, loading_bytes};
use super::pace::Pace;
use super::past::Decoding;
use super::reel::{Cut, Reel};
use super::signature::Signature;
use super::standing::Standing;
use super::step::Tenancy;
use crate::graph::{self, Footprint, GraphError, Imported, Lockstep, WeightUse, indexed_rows};
use crate::plan::{Ladder, Plan, Profile};
use crate::store::manifest::Dim;
use crate::store::{Decoder, ModelDir, NoDecoder, Serving};
use crate::stream::{Category, Grant, Ledger, Slots, StreamError};
use crate::sys::heap;
use crate::sys::lock::lock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tract_core::internal::*;

/// A model ready for passes.
pub struct Model {
    pub dir: ModelDir,
    /// What tells its version from another.
    pub(super) serving: Serving,
    /// The variant its passes use.
    pub variant: String,
    pub(super) plan: Lockstep,
    /// How the plan uses the weights, in its order.
    uses: Box<[WeightUse]>,
    /// For each input the rows of the table that it picks from.
    pub(super) indexed_rows: Box<[Option<usize>]>,
    pub(super) signature: Signature,
    decoding: Result<Decoding, NoDecoder>,
    pub(super) tenancy: Tenancy,
    disk: DiskKind,
    slots: Arc<Slots>,
    ledger: Arc<Ledger>,
    reel: Mutex<Arc<Reel>>,
    standing: Mutex<Standing>,
    /// How many tokens of those that are one of many share a pass.
    pub(super) pace: Pace,
    /// When it was used last.
    used: AtomicU64,
    /// Of the graph's bytes, those that lie between what is used of the heap.
    pub(super) holes_bytes: u64,
    graph: Grant,
}

/// What models of an engine are loaded with.
pub(super) struct Terms<'a> {
    /// One that it has.
    pub variant: &'a str,
    pub disk: DiskKind,
    pub policy: &'a Policy,
    /// The plan where nothing was measured, which the policy may change.
    pub base: Plan,
    pub slots: &'a Arc<Slots>,
    /// Granted for something that is idle while a model loads, the window: loading may use them.
    pub idle_bytes: u64,
    /// What importing its graph took when it was tried.
    pub rehearsed_bytes: Option<u64>,
    /// Heap that its manifest holds.
    pub manifest_bytes: u64,
    pub ledger: &'a Arc<Ledger>,
}

impl Model {
    /// Loads the graph of `dir`. No weight is read: what is to be pinned stays as it passes.
    /// `plan` is asked how its tape, whose blocks take so many bytes each, is to be played.
    pub(super) fn load(
        dir: ModelDir,
        serving: Serving,
        terms: &Terms,
    ) -> Result<Model, EngineError> {
        let Terms { variant, disk, policy, ref base, slots, idle_bytes, ledger, .. } = *terms;
        let manifest = &dir.manifest;
        let variant = variant.to_owned();
        let measured_bytes = manifest.loading_bytes.max(terms.rehearsed_bytes);
        let expected = loading_bytes(manifest.graph.bytes, measured_bytes);
        let mut grant = ledger.try_grant(Category::Graph, expected.saturating_sub(idle_bytes))?;
        let (read, took) = heap::measured(|| {
            let Imported { plan, uses, outputs, .. } = import_checked(&dir)?;
            // Names of nodes are for those who look at a graph.
            let uses = uses.into_iter().map(|used| WeightUse { node: String::new(), ..used });
            let uses: Box<[WeightUse]> = uses.collect();
            let variants = Variants::Alike(variant.clone());
            let cut = Cut::open(&dir, variants, &uses, disk, slots)?;
            let inputs = manifest.given_inputs().collect();
            let signature = Signature::new(inputs, outputs, manifest.batch.clone());
            let rows = indexed_rows(&plan).into_boxed_slice();
            Ok::<_, EngineError>((Lockstep::new(plan), uses, rows, Arc::new(cut), signature))
        });
        let (lockstep, uses, indexed_rows, cut, signature) = read?;
        let peak_bytes = took.heap.peak_bytes;
        log::debug!("loading held {peak_bytes} bytes at its peak, {expected} were expected");
        // Nothing is measured where the program does not count.
        if took.heap.held_bytes > 0 {
            grant.resize(took.resident_bytes() + terms.manifest_bytes)?;
        }
        let held_bytes = cut.held_bytes(&**cut.sources.by(base.source));
        let reel = Reel::new(base.clone(), &cut, None, ledger)?;
        let plan = policy.plan(&cut.tape, &held_bytes, base.clone());
        let decoder = Decoder::of(&dir.manifest.inputs, &dir.manifest.outputs);
        let decoding = decoder.map(|decoder| Decoding::new(decoder, &lockstep));
        let model = Model {
            serving,
            decoding,
            tenancy: Tenancy::default(),
            variant,
            plan: lockstep,
            uses,
            indexed_rows,
            signature,
            disk,
            slots: Arc::clone(slots),
            ledger: Arc::clone(ledger),
            reel: Mutex::new(Arc::new(reel)),
            standing: Mutex::default(),
            pace: Pace::default(),
            used: AtomicU64::default(),
            holes_bytes: took.holes_bytes,
            graph: grant,
            dir,
        };
        model.settle(plan)?;
        Ok(model)
    }

    /// How it generates text.
    pub(super) fn decoding(&self) -> Result<&Decoding, EngineError> {
        self.decoding.as_ref().map_err(|why| EngineError::NoText {
            model: self.name().to_string(),
            why: why.to_string(),
        })
    }

    /// When it was used last, by the engine's count.
    pub(super) fn last_use(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn note_use(&self, now: u64) {
        self.used.store(now, Ordering::Relaxed);
    }

    /// Name of the model.
    pub fn name(&self) -> &str {
        &self.dir.manifest.model
    }

    /// Bytes the graph holds, and the tape's index.
    pub fn graph_bytes(&self) -> u64 {
        self.graph.bytes() + self.reel().cut.held_beside_bytes()
    }

    /// Bytes of the tape that stay in memory.
    pub fn pinned_bytes(&self) -> u64 {
        self.reel().pins.bytes()
    }

    /// Lets all pins go; whether there were any.
    pub(super) fn unpin(&self) -> bool {
        // Not while they go over to another reel.
        let reel = lock(&self.reel);
        reel.pins.release()
    }

    /// Bytes of the tape.
    pub fn tape_bytes(&self) -> u64 {
        self.reel().cut.tape.bytes()
    }

    /// The plan that its passes follow.
    pub fn plan(&self) -> Plan {
        self.reel().plan.clone()
    }

    /// The plan that they follow, whatever single requests ask for.
    pub(super) fn own_plan(&self) -> Plan {
        let own = lock(&self.standing).own.clone();
        own.unwrap_or_else(|| self.plan())
    }

    /// How its passes are played.
    pub(super) fn reel(&self) -> Arc<Reel> {
        Arc::clone(&lock(&self.reel))
    }

    /// How they would be played by another plan.
    pub(super) fn reel_by(&self, plan: Plan) -> Result<Reel, EngineError> {
        let last = self.reel();
        let variants = self.variants_of(&plan)?;
        if last.cut.is_of(&variants) {
            return Reel::new(plan, &last.cut, Some(&last), &self.ledger);
        }
        let ways = (self.disk, &self.slots);
        let cut = Cut::open_beside(&self.dir, variants, &self.uses, ways, &self.ledger)?;
        Reel::new(plan, &Arc::new(cut), None, &self.ledger)
    }

    /// Its passes are played by `plan` from now on; as before where they cannot be.
    pub(super) fn play_by(&self, plan: Plan) {
        if let Err(error) = self.settle(plan) {
            let text = error.to_string().replace('\n', ": ");
            log::warn!("model {} is played as before: {text}", self.name());
        }
    }

    /// Its passes are played by `plan` from now on.
    pub(super) fn settle(&self, plan: Plan) -> Result<(), EngineError> {
        self.play_for_now(&plan)?;
        lock(&self.standing).own = Some(plan);
        Ok(())
    }

    /// Its passes are played by `plan` until they are played otherwise.
    pub(super) fn play_for_now(&self, plan: &Plan) -> Result<(), EngineError> {
        if self.reel().plan == *plan {
            return Ok(());
        }
        let reel = self.reel_by(plan.clone())?;
        let mut playing = lock(&self.reel);
        reel.take_over(&playing);
        *playing = Arc::new(reel);
        Ok(())
    }

    /// Its passes are played as they are planned again.
    pub(super) fn play_own(&self) -> Result<(), EngineError> {
        let own = lock(&self.standing).own.clone();
        own.map_or(Ok(()), |own| self.play_for_now(&own))
    }

    /// Its passes are played in its own variant, until they are played otherwise: so it is measured.
    pub(super) fn play_plain(&self) -> Result<(), EngineError> {
        self.play_for_now(&Plan { variants: vec![], ..self.plan() })
    }

    /// The precisions in which its tensors lie on the disk; found out once.
    pub fn ladder(&self) -> Result<Arc<Ladder>, EngineError> {
        if let Some((ladder, _)) = &lock(&self.standing).ladder {
            return Ok(Arc::clone(ladder));
        }
        let bytes = ladder_bytes(&self.dir.manifest);
        let mut grant = self.ledger.try_grant(Category::Graph, bytes)?;
        let uses = Some(&*self.uses);
        let (built, took) = heap::metered(|| ladder::ladder(&self.dir, &self.variant, uses));
        let ladder = Arc::new(built?);
        // Nothing is measured where the program does not count.
        if took.held_bytes > 0 {
            grant.resize(took.held_bytes)?;
        }
        lock(&self.standing).ladder = Some((Arc::clone(&ladder), grant));
        Ok(ladder)
    }

    /// The ladder is found out anew when it is needed: files may have gone.
    pub(super) fn forget_ladder(&self) {
        lock(&self.standing).ladder = None;
    }

    /// The variants of its weights by a plan.
    fn variants_of(&self, plan: &Plan) -> Result<Variants, EngineError> {
        if plan.variants.is_empty() {
            return Ok(Variants::Alike(self.variant.clone()));
        }
        let each = plan.variants.iter().map(|variant| checked_variant(&self.dir.manifest, variant));
        each.collect::<Result<_, _>>().map(Variants::Each)
    }

    /// What was measured of it on this board.
    pub(super) fn profile(&self) -> Option<Arc<Profile>> {
        lock(&self.standing).profile.clone()
    }

    /// What passes by a plan take: as measured, or where it chooses precisions as it follows from
    /// that.
    pub(super) fn profile_by(&self, plan: &Plan) -> Option<Arc<Profile>> {
        let profile = self.profile()?;
        if plan.variants.is_empty() {
            return Some(profile);
        }
        let ladder = self.ladder().ok()?;
        let choice = ladder.choice_of(&plan.variants).ok()?;
        profile.with_choice(&ladder, &choice).ok().map(Arc::new)
    }

    /// Whether nothing is known of it on these cores, and could be.
    pub(super) fn is_to_be_measured(&self, cores: &[usize]) -> bool {
        let is_known = |profile: &Arc<Profile>| {
            profile.board.cores.iter().map(|core| core.id).eq(cores.iter().copied())
        };
        !self.reel().blocks().is_empty()
            && self.given_up().is_none()
            && !self.profile().as_ref().is_some_and(is_known)
    }

    /// It is measured no more by itself.
    pub(super) fn give_up_measuring(&self, why: String) {
        lock(&self.standing).given_up = Some(why);
    }

    /// Why it is measured no more, if it is not.
    pub(super) fn given_up(&self) -> Option<String> {
        lock(&self.standing).given_up.clone()
    }

    pub(super) fn set_profile(&self, profile: Arc<Profile>) {
        let mut standing = lock(&self.standing);
        standing.given_up = None;
        standing.profile = Some(profile);
    }

    /// Nothing is known of it from now on; it is played as before.
    pub(super) fn drop_profile(&self) {
        lock(&self.standing).profile = None;
    }

    /// Notes what a pass took and what was forecast; whether its profile is not to be believed from
    /// now on.
    pub(super) fn doubts(&self, took_us: f64, expected_us: f64) -> bool {
        lock(&self.standing).doubt.note(took_us, expected_us)
    }

    /// The length that all open dimensions of a pass's inputs have, in the plan's order: 1 where
    /// there are none, none where they differ.
    pub(super) fn tokens_of(&self, inputs: &TVec<TValue>) -> Option<u64> {
        let shapes = self.dir.manifest.inputs.iter().zip(inputs);
        let sizes = shapes.flat_map(|(port, input)| port.shape.iter().zip(input.shape()));
        let mut open = sizes.filter(|(dim, _)| matches!(dim, Dim::Symbol(_))).map(|(_, size)| size);
        let first = open.next().copied().unwrap_or(1);
        open.all(|size| *size == first).then_some(first as u64)
    }

    /// What its files lie on.
    pub(super) fn disk(&self) -> DiskKind {
        self.disk
    }

    /// What brings its blocks in: "mapped", "read" or "direct".
    pub fn source_name(&self) -> &'static str {
        self.reel().source.name()
    }

    /// What tells the precisions in which its passes are played from others.
    pub fn choice(&self) -> Choice {
        self.reel().cut.choice
    }

    /// Name of layer `index`.
    pub(super) fn layer_name(&self, index: usize) -> String {
        self.dir.manifest.layers[index].name.clone()
    }

    /// Takes the model out of service.
    pub(super) fn fail(&self, cause: &StreamError) {
        let cause = cause.to_string().lines().next().unwrap_or_default().to_string();
        log::error!("model {} is out of service: {cause}", self.name());
        lock(&self.standing).failure.get_or_insert(cause);
    }

    /// An error where the model is out of service.
    pub(super) fn check_service(&self) -> Result<(), EngineError> {
        match &lock(&self.standing).failure {
            None => Ok(()),
            Some(cause) => Err(EngineError::OutOfService {
                model: self.name().to_string(),
                cause: cause.clone(),
            }),
        }
    }

    /// What a pass over inputs of these shapes, in the plan's order, will hold besides weights.
    pub(super) fn footprint(&self, shapes: &[Vec<usize>]) -> Footprint {
        self.footprint_of_rows(shapes, usize::MAX)
    }

    /// The same where the logits of so many of the last tokens at most are wanted.
    pub(super) fn footprint_of_rows(&self, shapes: &[Vec<usize>], rows: usize) -> Footprint {
        let footprint = self.plan.footprint_of_rows(shapes, rows);
        Footprint { alone_bytes: footprint.alone_bytes + self.decoding_bytes(), ..footprint }
    }

    /// What the compute threads decode blocks into; once a pass.
    pub(super) fn decoding_bytes(&self) -> u64 {
        let reel = self.reel();
        match reel.decodes() {
            true => reel.plan.threads as u64 * self.plan.panel_bytes(),
            false => 0,
        }
    }
}

/// Reads and imports the graph, which has to have the manifest's inputs and outputs.
fn import_checked(dir: &ModelDir) -> Result<Imported, EngineError> {
    let manifest = &dir.manifest;
    let imported = graph::import(dir.read_file(&manifest.graph)?, &manifest.weights)?;
    if manifest.inputs == imported.inputs && manifest.outputs == imported.outputs {
        return Ok(imported);
    }
    let what = "the model's inputs or outputs".to_string();
    Err(GraphError::Mismatch { what }.into())
}
