//! Requests together give what each gives alone, whatever threads there are, and what one of them
//! gets wrong is its own.

use super::super::attention::Append;
use super::super::integers::replace_products;
use super::super::kernel::Kernels;
use super::super::logits;
use super::super::ops::Feed;
use super::super::position::IndexOutOfRange;
use super::super::product::Lease;
use super::*;
use crate::codec::Codec;
use std::sync::atomic::{AtomicBool, Ordering};
use tract_core::ops::array::{Gather, MultiBroadcastTo, Range, Slice};
use tract_core::ops::einsum::EinSum;
use tract_core::ops::logic::IfThenElse;
use tract_core::ops::math;
use tract_core::ops::nn::{Reduce, Reducer, Softmax, SoftmaxKind};
use tract_linalg::multithread::set_threading_panel_threshold;

/// Of compute threads.
const CREWS: [usize; 4] = [1, 2, 4, 8];

/// What a pass may take that its requests' shapes do not tell.
const SPARE_BYTES: u64 = 64 << 20;

/// The pass of a model that has no streamed weights.
struct NoTape {
    /// Whether nobody waits for it.
    is_over: bool,
}

impl Feed for NoTape {
    fn codec(&self, _: usize) -> Option<&'static dyn Codec> {
        unreachable!("there is no weight")
    }

    fn block_count(&self, _: usize) -> usize {
        unreachable!("there is no weight")
    }

    fn lease(&self, _: usize, _: usize) -> TractResult<Lease> {
        unreachable!("there is no weight")
    }

    fn read_rows(
        &self,
        _: usize,
        _: &[usize],
        _: &mut dyn FnMut(usize, &[u8]) -> TractResult<()>,
    ) -> TractResult<()> {
        unreachable!("there is no weight")
    }

    fn kernels(&self) -> &Kernels {
        unreachable!("there is no weight")
    }

    fn grow(&self, bytes: u64) -> TractResult<()> {
        ensure!(bytes <= SPARE_BYTES, "{bytes} of {SPARE_BYTES} bytes");
        Ok(())
    }

    fn go_on(&self) -> TractResult<()> {
        ensure!(!self.is_over, "nobody waits for it");
        Ok(())
    }
}

/// A plan of `model`, as an importer makes it.
fn lockstep(model: TypedModel) -> Lockstep {
    let mut model = model.into_decluttered().unwrap();
    check_ops(&mut model).unwrap();
    Lockstep::new(TypedSimplePlan::new(model.into_optimized().unwrap()).unwrap())
}

/// What comes of requests of one pass on so many threads.
pub fn run(lockstep: &Lockstep, threads: usize, requests: &[TVec<TValue>]) -> Outcomes {
    on_threads(threads, || run_for(NoTape { is_over: false }, lockstep, requests))
}

fn run_for(tape: NoTape, lockstep: &Lockstep, requests: &[TVec<TValue>]) -> Outcomes {
    let feed = TapeFeed(Arc::new(tape));
    lockstep.run(&feed, requests.to_vec(), &|_| Ok(()), &|_| ()).unwrap()
}

fn on_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    // However small a product: on one thread there is nothing to go wrong.
    set_threading_panel_threshold(1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let executor = Executor::MultiThread(Arc::new(pool));
    let Executor::MultiThread(pool) = &executor else { unreachable!() };
    pool.install(|| multithread_tract_scope(executor.clone(), work))
}

/// Attention of `n` rows to each other: two products of the request's own values.
fn attention() -> TypedModel {
    let mut model = TypedModel::default();
    let n = model.symbols.sym("n");
    let f32 = f32::datum_type();
    let x = model.add_source("x", f32.fact([n.to_dim(), 64.to_dim()])).unwrap();
    let product = |axes: &str| EinSum::new(axes.parse().unwrap(), f32);
    let scores = model.wire_node("scores", product("ik,jk->ij"), &[x, x]).unwrap();
    let softmax = Softmax { axes: tvec![1], kind: SoftmaxKind::default(), ..Softmax::default() };
    let shares = model.wire_node("shares", softmax, &scores).unwrap();
    let mixed = model.wire_node("mixed", product("ij,jk->ik"), &[shares[0], x]).unwrap();
    model.select_output_outlets(&mixed).unwrap();
    model
}

fn rows(count: usize) -> TValue {
    let value = |i: usize| (i * 7919 % 1000) as f32 / 500.0 - 1.0;
    let values: Vec<f32> = (0..count * 64).map(|i| value(i + count)).collect();
    tensor1(&values).into_shape(&[count, 64]).unwrap().into_tvalue()
}

/// With three threads and more, a pass of several requests once ended in "RefCell already borrowed":
/// a product that had divided itself among threads waited for them inside the loop over requests,
/// and took up another request there, whose product wanted the same thread's scratch.
#[test]
fn requests_together_have_the_bits_that_each_has_alone_on_any_number_of_threads() {
    let lockstep = lockstep(attention());
    let lengths = [40, 3, 200, 117, 64, 1, 96, 150, 31, 128, 80, 12, 600, 55, 520, 90];
    let requests = lengths.map(|length| tvec![rows(length)]);
    let alone: Vec<TValue> = requests
        .iter()
        .map(|request| {
            run(&lockstep, 1, std::slice::from_ref(request)).remove(0).unwrap().remove(0)
        })
        .collect();
    for threads in CREWS {
        for seats in [1, 2, 3, 5, 16] {
            for start in (0..=requests.len() - seats).step_by(seats) {
                let asked = &requests[start..start + seats];
                for (found, alone) in run(&lockstep, threads, asked).iter().zip(&alone[start..]) {
                    let found = &found.as_ref().unwrap()[0];
                    assert!(found == alone, "{threads} threads, {seats} requests from {start}");
                }
            }
        }
    }
}

/// A product of large integers is one op that takes long: it went on after its request had ended.
#[test]
fn a_product_of_integers_ends_where_nobody_waits() {
    let mut model = TypedModel::default();
    let x = model.add_source("x", i64::fact([128, 128])).unwrap();
    let op = EinSum::new("ij,jk->ik".parse().unwrap(), i64::datum_type());
    let y = model.wire_node("y", op, &[x, x]).unwrap();
    model.select_output_outlets(&y).unwrap();
    replace_products(&mut model);
    let lockstep = lockstep(model);
    let request =
        tvec![tensor0(3i64).broadcast_scalar_to_shape(&[128, 128]).unwrap().into_tvalue()];
    let run = |is_over: bool| {
        run_for(NoTape { is_over }, &lockstep, std::slice::from_ref(&request)).remove(0)
    };
    let product = tensor0(9i64 * 128).broadcast_scalar_to_shape(&[128, 128]).unwrap();
    assert_eq!(*run(false).unwrap()[0], product);
    assert!(format!("{:#}", run(true).unwrap_err()).contains("nobody waits for it"));
}

/// Few large requests on many threads follow each other, small or many ones go side by side.
#[test]
fn all_threads_work_on_one_request_where_it_has_enough_for_them() {
    let check = |elements: &[usize], threads: usize, expected: Spread| {
        assert_eq!(Spread::of(threads, elements), expected, "{elements:?} on {threads}");
    };
    let enough = current_threading_element_threshold();
    check(&[3, 3], 8, Spread::Beside);
    check(&[enough, enough], 8, Spread::Within);
    check(&[enough, enough], 2, Spread::Beside);
    check(&[enough, 3], 8, Spread::Beside);
    check(&[enough; 8], 4, Spread::Beside);
}

/// `table[100 / x]`: an index that the request decides, and a division that it may make impossible.
fn lookup() -> TypedModel {
    let mut model = TypedModel::default();
    let n = model.symbols.sym("n");
    let x = model.add_source("x", i64::datum_type().fact([n.to_dim()])).unwrap();
    let hundred = model.add_const("hundred", tensor1(&[100i64])).unwrap();
    let index = model.wire_node("index", math::div(), &[hundred, x]).unwrap()[0];
    let table: Vec<f32> = (0..60).map(|i| i as f32).collect();
    let table = tensor1(&table).into_shape(&[20, 3]).unwrap();
    let table = model.add_const("table", table).unwrap();
    let row = model.wire_node("row", Gather::new(0), &[table, index]).unwrap();
    model.select_output_outlets(&row).unwrap();
    model
}

/// One index beyond a small table once made tract panic, and failed everybody in the pass.
#[test]
fn what_one_request_gets_wrong_ends_it_alone() {
    let lockstep = lockstep(lookup());
    let ask = |value: i64| tvec![tensor1(&[value, 50]).into_tvalue()];
    let right = |value: i64| {
        let rows = [100 / value, 2].map(|row| [0, 1, 2].map(|column| (row * 3 + column) as f32));
        tensor2(&rows)
    };
    for threads in CREWS {
        for _ in 0..3 {
            // Beyond the table, divided by zero, before the table, and right ones between them.
            let asked = [10, 5, 20, 0, 100, -4, 25];
            let outcomes = run(&lockstep, threads, &asked.map(ask));
            for (value, outcome) in asked.into_iter().zip(outcomes) {
                let node = |error: &TractError| error.downcast_ref::<AtNode>().unwrap().clone();
                match (value, outcome) {
                    (5 | -4, Err(error)) => {
                        let expected = IndexOutOfRange { index: 100 / value, rows: 20 };
                        assert_eq!(error.downcast_ref(), Some(&expected), "{error:#}");
                        assert_eq!(node(&error).name, "row", "{error:#}");
                    }
                    (0, Err(error)) => {
                        assert!(format!("{error:#}").contains("divide by zero"), "{error:#}");
                        assert_eq!(node(&error).name, "index", "{error:#}");
                    }
                    (value, outcome) => {
                        let found = outcome.unwrap_or_else(|error| panic!("{value}: {error:#}"));
                        assert_eq!(*found[0], right(value), "{value}");
                    }
                }
            }
        }
    }
}

/// What follows a range of `n` numbers reads as many of it, whatever the request's end makes of it.
#[test]
fn a_size_that_values_decide_contradicts_no_other() {
    let mut model = TypedModel::default();
    let n = model.symbols.sym("n").to_dim();
    let x = model.add_source("x", i64::datum_type().fact([n.clone()])).unwrap();
    let end = model.add_source("end", i64::datum_type().scalar_fact()).unwrap();
    let [start, step] =
        [0i64, 1].map(|value| model.add_const(format!("from.{value}"), tensor0(value)).unwrap());
    let places = model.wire_node("places", Range::new(n), &[start, end, step]).unwrap()[0];
    let sum = model.wire_node("sum", math::add(), &[x, places]).unwrap();
    model.select_output_outlets(&sum).unwrap();
    let lockstep = lockstep(model);
    let ask = |end: i64| tvec![tensor1(&[10i64, 20, 30]).into_tvalue(), tensor0(end).into_tvalue()];
    let outcomes = run(&lockstep, 4, &[3, 5, 2, 3].map(ask));
    let found: Vec<_> =
        outcomes.into_iter().map(|outcome| outcome.map(|mut o| o.remove(0))).collect();
    for right in [0, 3] {
        assert_eq!(**found[right].as_ref().unwrap(), tensor1(&[10i64, 21, 32]));
    }
    for (wrong, size) in [(1, 5), (2, 2)] {
        let text = format!("{:#}", found[wrong].as_ref().unwrap_err());
        assert!(text.contains(&format!("{size} elements where there are to be 3")), "{text}");
    }
}

/// Tract sets a model's constants with its first input.
#[test]
fn a_model_without_inputs_is_computed() {
    let mut model = TypedModel::default();
    let one = model.add_const("one", tensor1(&[1.0f32, 2.0])).unwrap();
    model.select_output_outlets(&[one]).unwrap();
    let lockstep = Lockstep::new(TypedSimplePlan::new(model).unwrap());
    let feed = TapeFeed(Arc::new(NoTape { is_over: false }));
    for seats in [1, 3] {
        let outcomes = lockstep.run(&feed, vec![tvec![]; seats], &|_| Ok(()), &|_| ()).unwrap();
        for outcome in outcomes {
            assert_eq!(*outcome.unwrap()[0], tensor1(&[1.0f32, 2.0]));
        }
    }
}

/// `n` numbers in `n` rows, summed: a request of eight bytes decides the size.
fn squares() -> TypedModel {
    let mut model = TypedModel::default();
    let size = model.symbols.sym("size").to_dim();
    let n = model.add_source("n", i64::datum_type().scalar_fact()).unwrap();
    let [start, step] =
        [0i64, 1].map(|value| model.add_const(format!("from.{value}"), tensor0(value)).unwrap());
    let row = model.wire_node("row", Range::new(size.clone()), &[start, n, step]).unwrap();
    let row = model.wire_node("wide", AxisOp::Add(0), &row).unwrap();
    let shape = tvec![size.clone(), size].into();
    let rows = model.wire_node("rows", MultiBroadcastTo::new(shape), &row).unwrap();
    let sum = model.wire_node("sum", Reduce::new(tvec![0, 1], Reducer::Sum), &rows).unwrap();
    model.select_output_outlets(&sum).unwrap();
    model
}

/// Sizes that data decide once counted as nothing: eight bytes of a request made a pass allocate
/// what they liked, and the kernel ended the daemon.
#[test]
fn what_values_decide_is_granted_before_it_is_allocated() {
    let plain = lockstep(squares());
    let mut branches = TypedModel::default();
    let is_so = branches.add_source("is_so", bool::datum_type().scalar_fact()).unwrap();
    let n = branches.add_source("n", i64::datum_type().scalar_fact()).unwrap();
    let op = IfThenElse {
        then_body: squares(),
        then_input_mapping: vec![1],
        else_body: squares(),
        else_input_mapping: vec![1],
    };
    let either = branches.wire_node("either", op, &[is_so, n]).unwrap();
    branches.select_output_outlets(&either).unwrap();
    let branches = lockstep(branches);
    let asked = [3, 10_000_000_000, 100, 1 << 14, 0, i64::MAX, -5];
    for threads in CREWS {
        for (lockstep, is_branch) in [(&plain, false), (&branches, true)] {
            let ask = |n: i64| {
                let so = is_branch.then(|| tensor0(n % 2 == 0).into_tvalue());
                so.into_iter().chain([tensor0(n).into_tvalue()]).collect()
            };
            let outcomes = run(lockstep, threads, &asked.map(ask));
            for (n, outcome) in asked.into_iter().zip(outcomes) {
                match outcome {
                    Ok(found) => {
                        let n = n.max(0);
                        assert_eq!(*found[0], tensor2(&[[n * n * (n - 1) / 2]]), "{n}");
                    }
                    Err(error) => {
                        assert!(n > 1000, "{n}: {error:#}");
                        assert!(error.is::<AtNode>(), "{n}: {error:#}");
                    }
                }
            }
            let large = run(lockstep, threads, &[1 << 14, 1 << 40].map(ask));
            assert!(large.iter().all(Result::is_err), "{threads} threads");
        }
    }
}

#[test]
fn branches_are_checked_too() {
    let mut body = TypedModel::default();
    let index = body.add_source("index", i64::datum_type().fact([1])).unwrap();
    let table = body.add_const("table", tensor1(&[1i64, 2, 3])).unwrap();
    let row = body.wire_node("row", Gather::new(0), &[table, index]).unwrap();
    body.select_output_outlets(&row).unwrap();
    let op = IfThenElse {
        then_body: body.clone(),
        then_input_mapping: vec![1],
        else_body: body,
        else_input_mapping: vec![1],
    };
    let mut model = TypedModel::default();
    let is_so = model.add_source("is_so", bool::datum_type().scalar_fact()).unwrap();
    let index = model.add_source("index", i64::datum_type().fact([1])).unwrap();
    let y = model.wire_node("y", op, &[is_so, index]).unwrap();
    model.select_output_outlets(&y).unwrap();
    let lockstep = lockstep(model);
    for is_so in [true, false] {
        let ask = |index: i64| tvec![tensor0(is_so).into_tvalue(), tensor1(&[index]).into_tvalue()];
        let outcomes = run(&lockstep, 2, &[2, 3].map(ask));
        assert_eq!(*outcomes[0].as_ref().unwrap()[0], tensor1(&[3i64]));
        assert!(outcomes[1].as_ref().unwrap_err().is::<IndexOutOfRange>());
    }
}

/// A decoder as drawn here, but for its weights: what is appended to the past, and twice each of the
/// last four new tokens in the place of their logits.
fn decoder() -> Lockstep {
    let mut model = TypedModel::default();
    let f32 = f32::datum_type();
    let sizes = ["new", "past"].map(|name| model.symbols.sym(name).to_dim());
    let [new, past] = sizes;
    let x = model.add_source("x", f32.fact([1.to_dim(), new.clone(), 8.to_dim()])).unwrap();
    let past = f32.fact([1.to_dim(), 1.to_dim(), past, 8.to_dim()]);
    let past = model.add_source("past", past).unwrap();
    let append = Append { window: None, rotation: None };
    let present = model.wire_node("present", append, &[x, past]).unwrap();
    let first = (new.clone() - 4).maxi(0.to_dim());
    let last = model.wire_node("last", Slice::new(1, first, new), &[x]).unwrap();
    let two = model.add_const("two", tensor3(&[[[2f32]]])).unwrap();
    let logits = model.wire_node("logits", math::mul(), &[last[0], two]).unwrap();
    model.select_output_outlets(&[present[0], logits[0]]).unwrap();
    logits::open(&mut model).unwrap();
    lockstep(model)
}

/// A prompt's parts had the logits of eight tokens each computed, of which one was looked at in all.
#[test]
fn logits_are_computed_of_as_many_tokens_as_are_wanted() {
    let lockstep = decoder();
    let x = |count: usize, times: f32| {
        let values: Vec<f32> = (0..count * 8).map(|i| (i + count) as f32 * times).collect();
        tensor1(&values).into_shape(&[1, count, 8]).unwrap()
    };
    let past = || Tensor::zero::<f32>(&[1, 1, 3, 8]).unwrap();
    let asked = [(6, None), (6, Some(0)), (5, Some(1)), (2, Some(3)), (7, Some(9)), (1, Some(0))];
    let given = [4, 0, 1, 2, 4, 0];
    for threads in CREWS {
        for seats in [1, 2, 3, 6] {
            for start in (0..=asked.len() - seats).step_by(seats) {
                let asked = &asked[start..start + seats];
                let inputs = |new| tvec![x(new, 1.0).into_tvalue(), past().into_tvalue()];
                let requests = asked.iter().map(|(new, _)| inputs(*new));
                let mut walk = lockstep.begin(requests.collect());
                for (seat, (_, rows)) in asked.iter().enumerate() {
                    rows.iter().for_each(|rows| lockstep.want_rows(&mut walk, seat, *rows));
                }
                let is_computed = AtomicBool::new(false);
                let enter = |visit: &Visit| {
                    is_computed.fetch_or(visit.name() == "logits", Ordering::Relaxed);
                };
                let feed = TapeFeed(Arc::new(NoTape { is_over: false }));
                let outcomes = on_threads(threads, || {
                    lockstep.complete(walk, &feed, &|_| Ok(()), &enter).unwrap()
                });
                let given = &given[start..start + seats];
                assert_eq!(is_computed.into_inner(), given.iter().any(|given| *given > 0));
                for ((outcome, (new, _)), given) in outcomes.iter().zip(asked).zip(given) {
                    let found = outcome.as_ref().unwrap();
                    assert_eq!(found[0].shape(), [1, 1, new + 3, 8]);
                    assert_eq!(found[1].shape(), [1, *given, 8]);
                    let values = found[1].try_as_plain_ram().unwrap().as_slice::<f32>().unwrap();
                    let twice = x(*new, 2.0);
                    let twice = twice.try_as_plain_ram().unwrap().as_slice::<f32>().unwrap();
                    assert_eq!(values, &twice[(new - given) * 8..], "{threads} threads");
                }
            }
        }
    }
}
