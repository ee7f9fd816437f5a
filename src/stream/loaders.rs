//! The loader threads.

use super::Flow;
use crate::sys::{affinity, panics};
use crossbeam_channel::{Sender, bounded};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Threads that serve one flow at a time. Dropping them joins them.
pub struct Loaders {
    threads: Vec<(Sender<Arc<Flow>>, JoinHandle<()>)>,
}

impl Loaders {
    /// Starts one loader for each of `cores`, pinned to it.
    pub fn start(cores: &[usize]) -> io::Result<Loaders> {
        let agents = cores.len();
        let threads = cores.iter().enumerate().map(|(index, core)| {
            let (sender, flows) = bounded::<Arc<Flow>>(1);
            let core = *core;
            let thread = std::thread::Builder::new()
                .name(format!("loader-{index}"))
                .stack_size(256 << 10)
                .spawn(move || {
                    affinity::pin_current_thread(core);
                    for flow in flows {
                        // The flow has ended with it; the thread is there for the next.
                        if let Err(text) = panics::caught(|| flow.serve(index, agents)) {
                            log::error!("loader {index} failed within: {text}");
                        }
                    }
                })?;
            Ok((sender, thread))
        });
        Ok(Loaders { threads: threads.collect::<io::Result<_>>()? })
    }

    /// Number of loaders.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    /// Sets every loader to work on `flow`, until it ends.
    pub fn serve(&self, flow: &Arc<Flow>) {
        for (sender, _) in &self.threads {
            sender.send(Arc::clone(flow)).expect("a loader lives as long as its sender");
        }
    }
}

impl Loaders {
    /// Ends the threads.
    pub fn dismiss(&mut self) {
        for (sender, thread) in self.threads.drain(..) {
            drop(sender);
            if thread.join().is_err() {
                log::error!("a loader thread panicked");
            }
        }
    }
}

impl Drop for Loaders {
    fn drop(&mut self) {
        self.dismiss();
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Block, BlockMemory, Category, Course, Dealing, DirectSource, Faults, FaultySource, Keep,
        Ledger, MappedSource, ReadSource, Release, Slots, StreamError, ThrottledSource,
        WeightSource,
    };
    use super::*;
    use crate::skip::skip;
    use crate::sys::direct::DirectFile;
    use std::io::Write;
    use std::path::PathBuf;
    use std::time::{Duration, Instant};
    use xxhash_rust::xxh3::xxh3_64;

    const BLOCK_BYTES: usize = 64 << 10;

    struct Fixture {
        tape: Arc<[Block]>,
        content: Vec<u8>,
        path: PathBuf,
        _folder: tempfile::TempDir,
    }

    fn fixture(blocks: usize) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layer");
        let content: Vec<u8> =
            (0..blocks * BLOCK_BYTES).map(|i| (i / 7 % 253) as u8 ^ (i >> 16) as u8).collect();
        std::fs::File::create(&path).unwrap().write_all(&content).unwrap();
        let tape = content
            .chunks(BLOCK_BYTES)
            .enumerate()
            .map(|(i, bytes)| Block {
                file: 0,
                offset: (i * BLOCK_BYTES) as u64,
                bytes: BLOCK_BYTES as u64,
                checksum: xxh3_64(bytes),
            })
            .collect();
        Fixture { tape, content, path, _folder: folder }
    }

    impl Fixture {
        fn files(&self) -> Vec<(PathBuf, std::fs::File)> {
            vec![(self.path.clone(), std::fs::File::open(&self.path).unwrap())]
        }

        fn mapped(&self) -> Arc<dyn WeightSource> {
            Arc::new(MappedSource::new(self.files(), 64, Arc::default()).unwrap())
        }

        fn read(&self, slots: &Arc<Slots>) -> Arc<dyn WeightSource> {
            let files = MappedSource::new(self.files(), 64, Arc::clone(slots)).unwrap();
            Arc::new(ReadSource::new(Arc::new(files)))
        }

        /// None where temporary files have no direct reads.
        fn direct(&self, slots: &Arc<Slots>) -> Option<Arc<dyn WeightSource>> {
            let reopen = |(_, file): &(PathBuf, std::fs::File)| {
                let refused = |error: &_| skip(&format!("no direct reads here: {error}"));
                DirectFile::reopen(file).inspect_err(refused).ok()
            };
            let files = self.files().iter().map(reopen).collect::<Option<_>>()?;
            Some(Arc::new(DirectSource::new(files, self.mapped(), 64, Arc::clone(slots))))
        }

        /// Plays the tape and returns what compute saw.
        fn play(
            &self,
            source: Arc<dyn WeightSource>,
            pins: &[Option<Arc<BlockMemory>>],
        ) -> Result<Vec<u8>, StreamError> {
            let loaders = Loaders::start(&[0, 0]).unwrap();
            let window_bytes = 3 * source.held_bytes(&self.tape[0]);
            let course = Course { window_bytes, pins, ..Course::default() };
            let flow = Flow::new(source, Arc::clone(&self.tape), course);
            loaders.serve(&flow);
            let mut seen = vec![];
            let result = (0..self.tape.len()).try_for_each(|index| {
                seen.extend_from_slice(flow.lease(index)?.as_ref());
                Ok(())
            });
            flow.end();
            result.map(|()| seen)
        }
    }

    #[test]
    fn every_source_plays_the_same_tape() {
        let fixture = fixture(20);
        let slow = Arc::new(ThrottledSource::new(fixture.mapped(), 100 << 20));
        for source in [fixture.mapped(), fixture.read(&Arc::default()), slow] {
            assert!(fixture.play(source, &[]).unwrap() == fixture.content);
        }
    }

    #[test]
    fn read_blocks_take_turns_in_the_windows_slots() {
        let fixture = fixture(20);
        let slots = Arc::<Slots>::default();
        check_slots(&fixture, fixture.read(&slots), &slots);
        let slots = Arc::<Slots>::default();
        if let Some(source) = fixture.direct(&slots) {
            check_slots(&fixture, source, &slots);
        }
    }

    fn check_slots(fixture: &Fixture, source: Arc<dyn WeightSource>, slots: &Slots) {
        let held_bytes = source.held_bytes(&fixture.tape[0]);
        assert!(held_bytes >= BLOCK_BYTES as u64 + 64, "a kernel reads ahead");
        slots.keep_within(3 * held_bytes);
        for pinned in [0, 7] {
            let mut pins = vec![None; 20];
            for (index, pin) in pins.iter_mut().enumerate().take(pinned) {
                let grant = Ledger::new(0).try_grant(Category::Pins, 0).unwrap();
                let loaded = Arc::new(source.load(&fixture.tape[index]).unwrap());
                *pin = Some(Arc::new(BlockMemory::granted(loaded, grant)));
            }
            assert!(fixture.play(Arc::clone(&source), &pins).unwrap() == fixture.content);
            let bytes = slots.bytes() - pinned as u64 * held_bytes;
            assert!((1..=3 * held_bytes).contains(&bytes), "{bytes} bytes wait for the next pass");
        }
        slots.keep_within(0);
        assert_eq!(slots.bytes(), 0, "pins have gone with their blocks");
    }

    /// The file may be damaged after it was opened.
    #[test]
    fn a_file_that_was_cut_is_an_error_of_direct_reads() {
        let fixture = fixture(8);
        let slots = Arc::<Slots>::default();
        let Some(source) = fixture.direct(&slots) else { return };
        let file = std::fs::File::options().write(true).open(&fixture.path).unwrap();
        for bytes in [BLOCK_BYTES * 5 + 1000, BLOCK_BYTES * 5, 0] {
            file.set_len(bytes as u64).unwrap();
            let text = fixture.play(Arc::clone(&source), &[]).unwrap_err().to_string();
            assert!(text.contains("the file ends before it") && text.contains("layer"), "{text}");
        }
        assert_eq!(slots.bytes(), 0);
    }

    #[test]
    fn pinned_blocks_are_not_loaded_again() {
        let fixture = fixture(6);
        let source = fixture.mapped();
        let pin = |i: usize| Some(Arc::new(source.load(&fixture.tape[i]).unwrap()));
        let pins = [pin(0), None, pin(2), None, None, pin(5)];
        assert!(fixture.play(Arc::clone(&source), &pins).unwrap() == fixture.content);
    }

    #[test]
    fn blocks_that_pass_are_kept_where_told() {
        let fixture = fixture(6);
        let loaders = Loaders::start(&[0, 0]).unwrap();
        let window_bytes = 2 * fixture.mapped().held_bytes(&fixture.tape[0]);
        let keep = Keep::new([true, false, true, true, false, false]);
        let course = Course { window_bytes, keep, ..Course::default() };
        let flow = Flow::new(fixture.mapped(), Arc::clone(&fixture.tape), course);
        loaders.serve(&flow);
        for index in 0..3 {
            flow.lease(index).unwrap();
        }
        flow.wait_for(3).unwrap();
        let kept = flow.end();
        let indexes: Vec<usize> = kept.iter().map(|(index, _)| *index).collect();
        assert_eq!(indexes, [0, 2, 3], "what passed is kept");
        for (index, loaded) in &kept {
            let start = index * BLOCK_BYTES;
            assert!((**loaded).as_ref() == &fixture.content[start..start + BLOCK_BYTES]);
        }
        let mut pins = vec![None; 6];
        kept.into_iter().for_each(|(index, loaded)| pins[index] = Some(loaded));
        assert!(fixture.play(fixture.mapped(), &pins).unwrap() == fixture.content);
    }

    /// What is no longer to stay goes while the pass goes on, not with its end.
    #[test]
    fn blocks_that_were_to_stay_go_once_used() {
        let fixture = fixture(6);
        let source = fixture.mapped();
        let loaders = Loaders::start(&[0]).unwrap();
        let window_bytes = 2 * source.held_bytes(&fixture.tape[0]);
        let pinned = [0, 4].map(|i| Arc::new(source.load(&fixture.tape[i]).unwrap()));
        let [first, last] = pinned.each_ref().map(Arc::downgrade);
        let mut pins = vec![None; 6];
        let mut pinned = pinned.into_iter();
        (pins[0], pins[4]) = (pinned.next(), pinned.next());
        let keep = Keep::new([false, true, true, true, false, false]);
        let course = Course { window_bytes, keep: keep.clone(), pins: &pins, ..Course::default() };
        let flow = Flow::new(source, Arc::clone(&fixture.tape), course);
        drop(pins);
        loaders.serve(&flow);
        let used = |index| {
            let lease = flow.lease(index).unwrap();
            let start = index * BLOCK_BYTES;
            assert!(lease.as_ref() == &fixture.content[start..start + BLOCK_BYTES]);
            Arc::downgrade(lease.loaded.as_ref().unwrap())
        };
        assert!(first.upgrade().is_some());
        used(0);
        assert!(first.upgrade().is_none(), "nobody pins it any more");
        let kept = [used(1), used(2)];
        assert!(kept.iter().all(|block| block.upgrade().is_some()), "they are to stay");
        keep.revoke();
        used(3);
        assert!(kept.iter().all(|block| block.upgrade().is_none()), "they are not");
        assert!(last.upgrade().is_some(), "it is still to be used");
        used(4);
        assert!(last.upgrade().is_none());
        used(5);
        assert!(flow.end().is_empty());
        assert_eq!(flow.counters().released, 4, "all that were loaded");
    }

    /// A tape in a circle: what comes next is read before a lap has ended, and what stays is read
    /// once, until it is no longer to stay.
    #[test]
    fn lap_follows_lap() {
        let fixture = fixture(6);
        let source = fixture.mapped();
        let loaders = Loaders::start(&[0, 0]).unwrap();
        let window_bytes = 2 * source.held_bytes(&fixture.tape[0]);
        let keep = Keep::new([false, true, false, false, false, false]);
        let mut pins = vec![None; 6];
        pins[3] = Some(Arc::new(source.load(&fixture.tape[3]).unwrap()));
        let pin = Arc::downgrade(pins[3].as_ref().unwrap());
        let course = Course {
            window_bytes,
            repeats: u64::MAX,
            keep: keep.clone(),
            pins: &pins,
            ..Course::default()
        };
        let flow = Flow::new(source, Arc::clone(&fixture.tape), course);
        drop(pins);
        loaders.serve(&flow);
        let play = |blocks: std::ops::Range<usize>| {
            for index in blocks {
                let lease = flow.lease(index).unwrap();
                let start = index * BLOCK_BYTES;
                assert!(lease.as_ref() == &fixture.content[start..start + BLOCK_BYTES]);
            }
        };
        play(0..6);
        play(0..5);
        let last = flow.lease(5).unwrap();
        flow.wait_for(0).unwrap();
        drop(last);
        let read = flow.counters().bytes_read / BLOCK_BYTES as u64;
        assert!((10..=11).contains(&read), "5 and 4 blocks, and what is ahead: {read}");
        assert!(pin.upgrade().is_some());
        keep.revoke();
        play(0..6);
        assert!(pin.upgrade().is_none(), "it went with its use, if not before");
        play(0..6);
        assert!(flow.end().is_empty());
        let counted = flow.counters();
        assert!(counted.window_peak_bytes <= window_bytes);
        assert!(counted.bytes_read >= (5 + 4 + 4 + 6) * BLOCK_BYTES as u64, "all, in the last lap");
    }

    /// PIPELOAD, PipeSwitch and load-all: units of several blocks, taken in turns by loaders, and
    /// released after use or at the end.
    #[test]
    fn units_are_loaded_and_released_as_one() {
        let fixture = fixture(12);
        let bytes = BLOCK_BYTES as u64;
        let held_bytes = fixture.mapped().held_bytes(&fixture.tape[0]);
        let check = |units: &[usize], window_blocks, turns, release, agents| {
            let loaders = Loaders::start(&vec![0; agents]).unwrap();
            let window_bytes = window_blocks * held_bytes;
            let course = Course { window_bytes, units, turns, release, ..Course::default() };
            let flow = Flow::new(fixture.mapped(), Arc::clone(&fixture.tape), course);
            loaders.serve(&flow);
            let mut seen = vec![];
            for index in 0..12 {
                seen.extend_from_slice(flow.lease(index).unwrap().as_ref());
            }
            assert!(flow.end().is_empty());
            assert!(seen == fixture.content, "{units:?}");
            let counted = flow.counters();
            assert_eq!((counted.bytes_read, counted.released), (12 * bytes, 12));
            assert!(counted.window_peak_bytes <= window_bytes);
            counted.window_peak_bytes / held_bytes
        };
        let layers = [3, 1, 4, 4];
        assert_eq!(check(&layers, 12, Dealing::Next, Release::AtEnd, 1), 12, "PipeSwitch");
        assert_eq!(check(&[12], 12, Dealing::Next, Release::AtEnd, 1), 12, "load-all");
        for agents in 1..4 {
            let window = 4 * (agents as u64 + 1);
            assert!(check(&layers, window, Dealing::Stride, Release::AfterUse, agents) >= 4);
        }
        assert_eq!(check(&layers, 4, Dealing::Next, Release::AfterUse, 2), 4);
    }

    #[test]
    fn a_fault_ends_the_pass_with_its_place() {
        let fixture = fixture(12);
        let faulty = |faults| Arc::new(FaultySource::new(fixture.mapped(), faults));
        let error = fixture.play(faulty(Faults { error_every: 1, ..Faults::default() }), &[]);
        assert!(matches!(error, Err(StreamError::Io { bytes: 65536, .. })), "{error:?}");
        let error = fixture.play(faulty(Faults { corrupt_every: 1, ..Faults::default() }), &[]);
        assert!(matches!(error, Err(StreamError::Damaged { .. })), "{error:?}");
        let error = fixture.play(faulty(Faults { short_every: 1, ..Faults::default() }), &[]);
        let text = error.unwrap_err().to_string();
        assert!(text.contains("the file ends before it") && text.contains("layer"), "{text}");
        let error = fixture.play(faulty(Faults { panic_every: 1, ..Faults::default() }), &[]);
        assert!(matches!(error, Err(StreamError::Loader)), "{error:?}");
        let delay = Duration::from_millis(2);
        let slow = faulty(Faults { delay_every: 2, delay, ..Faults::default() });
        assert!(fixture.play(slow, &[]).unwrap() == fixture.content);
    }

    /// Whatever the faults, a traversal ends: with the right bytes or with an error.
    #[test]
    fn no_fault_hangs_a_traversal_or_changes_a_byte() {
        let fixture = fixture(16);
        for seed in 0..60 {
            let faults = Faults {
                seed,
                error_every: 40,
                short_every: 40,
                corrupt_every: 40,
                panic_every: 80,
                delay_every: 5,
                delay: Duration::from_micros(300),
                ..Faults::default()
            };
            let direct = fixture.direct(&Arc::default());
            for source in [Some(fixture.mapped()), direct].into_iter().flatten() {
                let source = Arc::new(FaultySource::new(source, faults));
                if let Ok(seen) = fixture.play(source, &[]) {
                    assert!(seen == fixture.content, "seed {seed}");
                }
            }
        }
    }

    /// A mapped block that stayed was read again from its file at each pass, unverified: whoever
    /// wrote to the file changed answers, and whoever cut it ended the process.
    #[test]
    fn what_stays_is_ours_and_what_is_under_compute_is_confirmed() {
        let fixture = fixture(6);
        let source = fixture.mapped();
        let loaders = Loaders::start(&[0]).unwrap();
        let keep = Keep::new([true, true, false, false, false, false]);
        let window_bytes = 6 * source.held_bytes(&fixture.tape[0]);
        let begin = |pins: &[Option<Arc<BlockMemory>>]| {
            let course = Course { window_bytes, keep: keep.clone(), pins, ..Course::default() };
            let flow = Flow::new(Arc::clone(&source), Arc::clone(&fixture.tape), course);
            loaders.serve(&flow);
            flow
        };
        let file = std::fs::File::options().write(true).open(&fixture.path).unwrap();
        let write = |block: usize, byte: u8| {
            std::os::unix::fs::FileExt::write_at(&file, &[byte], (block * BLOCK_BYTES) as u64)
        };
        let flow = begin(&[]);
        (0..6).for_each(|block| drop(flow.lease(block).unwrap()));
        flow.confirm().unwrap();
        let mut pins = vec![None; 6];
        flow.end().into_iter().for_each(|(index, block)| pins[index] = Some(block));
        write(0, !fixture.content[0]).unwrap();
        let bytes =
            |block: &Option<Arc<BlockMemory>>| (**block.as_ref().unwrap()).as_ref().to_vec();
        assert!(bytes(&pins[0]) == fixture.content[..BLOCK_BYTES], "it is what was verified");
        // A change of what is pinned is none of this pass's blocks.
        let flow = begin(&pins);
        flow.lease(0).unwrap();
        flow.confirm().unwrap();
        // One of what compute has is told, whether it is still there or back as it was.
        let last = flow.lease(5).unwrap();
        write(5, !fixture.content[5 * BLOCK_BYTES]).unwrap();
        let error = flow.confirm().unwrap_err();
        assert!(
            matches!(error, StreamError::Damaged { offset, .. } if offset == 5 << 16),
            "{error}"
        );
        assert!(flow.failure().is_some());
        drop(last);
        flow.end();
        // Of what is cut off zeros are left, and the traversal fails.
        write(5, fixture.content[5 * BLOCK_BYTES]).unwrap();
        let flow = begin(&pins);
        let last = flow.lease(5).unwrap();
        file.set_len(5 * BLOCK_BYTES as u64).unwrap();
        // Where blocks are not mapped nothing is lost; of the last block there is a copy.
        let fourth = flow.lease(4).unwrap();
        file.set_len(4 * BLOCK_BYTES as u64).unwrap();
        let sum: u64 = fourth.as_ref().iter().chain(last.as_ref()).map(|b| u64::from(*b)).sum();
        std::hint::black_box(sum);
        let error = flow.confirm().unwrap_err().to_string();
        assert!(error.contains("layer: is no longer what it was"), "{error}");
        drop((fourth, last));
        flow.end();
    }

    #[test]
    fn a_throttled_source_keeps_its_bandwidth() {
        let fixture = fixture(16);
        let started = Instant::now();
        let source = Arc::new(ThrottledSource::new(fixture.mapped(), 10 << 20));
        fixture.play(source, &[]).unwrap();
        assert!(started.elapsed() >= Duration::from_millis(99), "1 MiB at 10 MiB/s");
    }

    #[test]
    fn a_flow_can_be_left_half_way() {
        let fixture = fixture(16);
        let loaders = Loaders::start(&[0, 0]).unwrap();
        for leave_after in 0..16 {
            let source = fixture.mapped();
            let window_bytes = 2 * source.held_bytes(&fixture.tape[0]);
            let course = Course { window_bytes, ..Course::default() };
            let flow = Flow::new(source, Arc::clone(&fixture.tape), course);
            loaders.serve(&flow);
            for index in 0..leave_after {
                flow.lease(index).unwrap();
            }
            let late = flow.lease(leave_after).unwrap();
            flow.end();
            drop(late);
            assert!(matches!(flow.lease(leave_after), Err(StreamError::Cancelled)));
        }
    }
}
