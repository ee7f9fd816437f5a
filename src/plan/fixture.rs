//! Profiles for tests: BERT-Large, f32, on two cores of a server with a disk of 1.7 GB/s.

use super::board::{Board, Core};
use super::ladder::{Ladder, LadderTensor, Part, Rung};
use super::profile::{
    BlockRun, BytesAt, CodecRate, Contention, FORMAT, LayerCost, PassTime, Profile, ReadRate,
};
use super::{Dealing, Grouping, PinPlace, Placement, Plan, Release, Way};

pub const MIB: u64 = 1 << 20;

/// 24 layers of 48 blocks of 1 MiB, 15 ms each at 128 tokens.
pub fn profile() -> Profile {
    let cores = (0..2).map(|id| Core { id, speed: 1.0 }).collect();
    let layer = |index| LayerCost {
        name: format!("encoder.{index}"),
        blocks: [12, 36].map(|count| blocks(count, MIB)).to_vec(),
        decode_us: 0.0,
        fixed_us: 1400.0,
        per_token_us: 106.25,
        error: 0.02,
    };
    let read = |way, loaders, gib_s: f64, cpu_ns_per_byte| ReadRate {
        way,
        loaders,
        request_bytes: MIB,
        is_scattered: false,
        bandwidth_bytes_s: gib_s * 1e9,
        cpu_ns_per_byte,
    };
    let pass = |threads, tokens, latency_us| PassTime { threads, tokens, latency_us };
    Profile {
        format: FORMAT,
        hermes: "0.1.0".into(),
        model: "bert".into(),
        version: "1".into(),
        variant: "f32".into(),
        board: Board {
            cpu: "EPYC".into(),
            cores,
            page_bytes: 4096,
            kernel: "6.18".into(),
            disk: "vda ext4".into(),
        },
        reads: vec![
            read(Way::Mapped, 1, 1.75, 0.25),
            read(Way::Mapped, 2, 1.8, 0.3),
            read(Way::Direct, 1, 1.0, 0.125),
            read(Way::Direct, 2, 1.1, 0.125),
            read(Way::Direct, 4, 1.2, 0.125),
        ],
        layers: (0..24).map(layer).collect(),
        layer_threads: 2,
        passes: vec![pass(1, 128, 700_000.0), pass(2, 128, 366_000.0), pass(2, 16, 75_000.0)],
        process_bytes: 16 * MIB,
        graph_bytes: MIB,
        activations: vec![
            BytesAt { tokens: 16, bytes: MIB },
            BytesAt { tokens: 128, bytes: 9 * MIB },
        ],
        kv_bytes_per_token: 0,
        mapped_contention: Contention { loader_slowdown: 1.25, ..Contention::default() },
        direct_contention: Contention { loader_slowdown: 1.25, ..Contention::default() },
        rates: rates(),
        skipped: vec![],
    }
}

/// The variants of `ladder`: bits of a weight, time for one in a product with one column, and how
/// many times as far answers are off as by a3.
const VARIANTS: [(&str, f64, f64, f64); 6] = [
    ("f32", 32.0, 0.25, 0.0),
    ("a6", 6.5, 0.4, 0.017),
    ("a5", 5.5, 0.45, 0.066),
    ("a4", 4.5, 0.3, 0.24),
    ("a3", 3.5, 0.35, 1.0),
    ("a2", 2.5, 0.25, 4.7),
];

fn rates() -> Vec<CodecRate> {
    let rate = |&(codec, _, ns_per_weight, _): &(&str, f64, f64, f64)| CodecRate {
        codec: codec.into(),
        ns_per_weight,
    };
    VARIANTS.iter().map(rate).collect()
}

/// The tensors of `profile`: six a layer, values and what is written last matter most.
pub fn ladder() -> Ladder {
    let kinds = [
        ("q", 1, 2e-4),
        ("k", 1, 3e-4),
        ("v", 1, 1.2e-3),
        ("o", 1, 8e-4),
        ("up", 4, 6e-4),
        ("down", 4, 9e-4),
    ];
    let tensor = |(index, (kind, mebi, divergence)): (usize, (&str, u64, f64))| {
        let (layer, elements) = (index / kinds.len(), mebi << 20);
        let rung = |&(variant, bits, _, times): &(&str, f64, f64, f64)| {
            let bytes = (elements as f64 * bits / 8.0) as u64;
            let count = bytes.div_ceil(MIB);
            Rung {
                variant: variant.into(),
                codec: variant.into(),
                blocks: vec![blocks(count as usize, bytes / count)],
                divergence: divergence * times * (0.5 + layer as f64 / 24.0),
            }
        };
        let name = format!("layer.{layer}.{kind}");
        let node = String::new();
        LadderTensor { name, node, layer, elements, rungs: VARIANTS.iter().map(rung).collect() }
    };
    let tensors = (0..24).flat_map(|_| kinds).enumerate().map(tensor).collect();
    let tape = (0..24).map(|layer| (6 * layer..6 * layer + 6).map(Part::Tensor).collect());
    Ladder { tensors, tape: tape.collect() }
}

pub fn blocks(count: usize, bytes: u64) -> BlockRun {
    BlockRun { count, bytes, mapped_bytes: bytes, direct_bytes: bytes + 4096, elements: 0 }
}

/// One mapped loader beside compute on both cores, through 16 MiB.
pub fn plan() -> Plan {
    Plan {
        source: Way::Mapped,
        loaders: 1,
        threads: 2,
        placement: Placement::Shared,
        grouping: Grouping::Blocks,
        turns: Dealing::Next,
        release: Release::AfterUse,
        window_bytes: 16 * MIB,
        pin_bytes: 0,
        pins: PinPlace::Spread,
        variants: vec![],
    }
}
