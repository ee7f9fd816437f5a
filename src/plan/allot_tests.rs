//! Greedy and its search, against every choice there is and an exact knapsack.

use super::super::fixture::{self, blocks};
use super::super::ladder::{LadderTensor, Part, Rung};
use super::*;
use proptest::prelude::*;

/// Elements of a tensor, and bits and losses of its rungs.
type Sketch = (u64, Vec<(f64, f64)>);

fn ladder_of(tensors: &[Sketch]) -> Ladder {
    let tensor = |(index, (elements, rungs)): (usize, &Sketch)| {
        let rung = |(bits, divergence): &(f64, f64)| Rung {
            variant: format!("{bits}"),
            codec: format!("{bits}"),
            blocks: vec![blocks(1, (*elements as f64 * bits / 8.0).ceil() as u64)],
            divergence: *divergence,
        };
        LadderTensor {
            name: index.to_string(),
            node: String::new(),
            layer: index,
            elements: *elements,
            rungs: rungs.iter().map(rung).collect(),
        }
    };
    let tape = (0..tensors.len()).map(|index| vec![Part::Tensor(index)]).collect();
    Ladder { tensors: tensors.iter().enumerate().map(tensor).collect(), tape }
}

/// Ladders of up to so many tensors, whose losses fall about by four with each bit, not always.
fn ladders(most: usize) -> impl Strategy<Value = Ladder> {
    let tensor = (1u64..=8, 0.0f64..1.0, prop::collection::vec(0.1f64..1.2, 5), 1usize..=6);
    prop::collection::vec(tensor, 2..=most).prop_map(|tensors| {
        let tensor = |(size, importance, ratios, rungs): &(u64, f64, Vec<f64>, usize)| {
            // The least loses a tenth in the mean of 10^-3 to 10^0.
            let mut loss = 0.3 * 10f64.powf(-3.0 * importance);
            let bits = [2.5, 3.5, 4.5, 5.5, 6.5, 32.0];
            let mut ladder = vec![];
            for (at, bits) in bits.into_iter().enumerate().take(*rungs) {
                ladder.push((bits, if at == 5 { 0.0 } else { loss }));
                loss *= 0.5 * ratios.get(at).copied().unwrap_or(0.0);
            }
            ladder.reverse();
            (size * 4096, ladder)
        };
        ladder_of(&tensors.iter().map(tensor).collect::<Vec<_>>())
    })
}

/// The least loss within so many bytes, of all choices: the front of all sums, tensor by tensor.
fn exact(ladder: &Ladder) -> Vec<(u64, f64)> {
    let mut sums = vec![(0, 0.0)];
    for tensor in &ladder.tensors {
        let rungs = tensor.rungs.iter().map(|rung| (rung.bytes(), rung.divergence));
        let mut next: Vec<(u64, f64)> = rungs
            .flat_map(|(bytes, loss)| sums.iter().map(move |sum| (sum.0 + bytes, sum.1 + loss)))
            .collect();
        next.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let mut least = f64::INFINITY;
        next.retain(|sum| {
            let is_less = sum.1 < least;
            least = least.min(sum.1);
            is_less
        });
        sums = next;
    }
    sums
}

fn least_loss(front: &[(u64, f64)], most_bytes: u64) -> Option<f64> {
    front.iter().take_while(|sum| sum.0 <= most_bytes).last().map(|sum| sum.1)
}

fn range(ladder: &Ladder) -> (u64, u64) {
    let all = |of: fn(u64, u64) -> u64, start| {
        let tensor = |tensor: &LadderTensor| tensor.rungs.iter().map(Rung::bytes).fold(start, of);
        ladder.tensors.iter().map(tensor).sum::<u64>()
    };
    (all(u64::min, u64::MAX), all(u64::max, 0))
}

#[test]
fn steps_go_along_the_hull_the_best_first() {
    // The second rung of the first tensor lies above the line from the first to the third, and the
    // second tensor's last loses more than its second.
    let ladder = ladder_of(&[
        (8, vec![(32.0, 0.0), (16.0, 0.4), (8.0, 0.6)]),
        (16, vec![(24.0, 0.2), (16.0, 0.09), (8.0, 0.3)]),
    ]);
    let allotter = Allotter::new(&ladder);
    let steps: Vec<_> = allotter.steps.iter().map(|step| (step.tensor, step.bytes)).collect();
    assert_eq!(steps, [(0, 24), (1, 16)]);
    assert_eq!(allotter.after(0), [2, 2]);
    assert_eq!(allotter.after(2), [0, 1]);
    assert_eq!(allotter.within_bytes(23), None);
    assert_eq!(allotter.within_bytes(24), Some(vec![2, 2]));
    // Greedy would stop here; what lies above the hull fits.
    assert_eq!(allotter.within_bytes(32), Some(vec![1, 2]));
    assert_eq!(allotter.within_bytes(40), Some(vec![2, 1]));
    assert_eq!(allotter.within_bytes(1 << 20), Some(vec![0, 1]));
    assert_eq!(allotter.within_loss(0.1), Some(vec![0, 1]));
    assert_eq!(allotter.within_loss(0.695), Some(vec![2, 1]));
    assert_eq!(allotter.within_loss(0.05), None);
}

/// A tensor that is used twice is read twice, and one that is not used costs nothing.
#[test]
fn bytes_are_those_of_the_tape() {
    let rungs = vec![(16.0, 0.0), (8.0, 0.5)];
    let mut ladder = ladder_of(&[(8, rungs.clone()), (8, rungs.clone()), (8, rungs)]);
    ladder.tape = vec![vec![
        Part::Tensor(0),
        Part::Tensor(1),
        Part::Fixed(vec![blocks(2, 50)]),
        Part::Tensor(0),
    ]];
    let allotter = Allotter::new(&ladder);
    assert_eq!(allotter.bytes_after(0), 124);
    assert_eq!(allotter.after(0), [1, 1, 0]);
    assert_eq!(allotter.within_bytes(139), Some(vec![1, 0, 0]));
    assert_eq!(allotter.bytes_after(2), ladder.bytes(&[0, 0, 0]));
}

#[test]
fn more_bytes_never_lose_more() {
    let ladder = fixture::ladder();
    let allotter = Allotter::new(&ladder);
    let (least, most) = range(&ladder);
    let losses: Vec<f64> = (0..=40)
        .map(|part| least + (most - least) * part / 40)
        .map(|bytes| {
            let choice = allotter.within_bytes(bytes).unwrap();
            assert!(ladder.bytes(&choice) <= bytes);
            ladder.divergence(&choice)
        })
        .collect();
    assert!(losses.is_sorted_by(|a, b| a >= b), "{losses:?}");
    assert_eq!(losses[40], 0.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_choice_of_as_many_bytes_loses_less(
        ladder in ladders(14),
        shares in prop::collection::vec(0.0f64..1.0, 4),
    ) {
        let (allotter, front) = (Allotter::new(&ladder), exact(&ladder));
        let (least, most) = range(&ladder);
        for share in shares {
            let bytes = least + ((most - least) as f64 * share * share) as u64;
            let choice = allotter.within_bytes(bytes).unwrap();
            prop_assert!(ladder.bytes(&choice) <= bytes);
            let (found, best) = (ladder.divergence(&choice), least_loss(&front, bytes).unwrap());
            prop_assert!(found <= best + 1e-4, "{found} where {best} is possible in {bytes}");
            // As few bytes for that loss.
            let other = allotter.within_loss(found + 1e-12).unwrap();
            prop_assert!(ladder.divergence(&other) <= found + 1e-12);
            let fewest = front.iter().find(|sum| sum.1 <= found + 1e-12).unwrap().0;
            let slack = 1.0 + ladder.bytes(&other) as f64 / fewest as f64 - 2.0;
            prop_assert!(slack <= 0.01, "{} bytes where {fewest} do", ladder.bytes(&other));
        }
    }
}
