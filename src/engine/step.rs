//! A session's part in a pass: what it reads, and what comes of it.

use super::choice::Choice;
use super::past::{Past, datum};
use crate::store::Decoder;
use crate::store::manifest::Port;
use std::sync::{Arc, Weak};
use tract_core::internal::*;

/// Tells a loaded model from any other, and whether sessions use it.
#[derive(Clone, Debug, Default)]
pub struct Tenancy(Arc<()>);

impl Tenancy {
    /// Whether sessions are there.
    pub fn is_used(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Whether both are of one model.
    pub fn is(&self, other: &Tenancy) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Tells the same of somebody who does not use it.
    pub fn tenant(&self) -> Tenant {
        Tenant(Arc::downgrade(&self.0))
    }
}

/// Of which loaded model something is.
#[derive(Clone, Debug)]
pub struct Tenant(Weak<()>);

impl PartialEq for Tenant {
    fn eq(&self, other: &Tenant) -> bool {
        Weak::ptr_eq(&self.0, &other.0)
    }
}

/// Tokens to be read.
pub struct Step {
    /// Of which session.
    pub session: u64,
    /// Of the model that the past is of.
    pub tenancy: Tenancy,
    pub ids: Vec<u32>,
    /// Of how many of them, the last ones, the logits are wanted.
    pub rows: usize,
    pub past: Past,
    /// What the session was granted to compute it with.
    pub work_bytes: u64,
}

/// What reading tokens came to.
pub struct Stepped {
    pub past: Past,
    /// Of the last tokens, as many as were wanted, one after the other.
    pub logits: Vec<f32>,
    pub choice: Choice,
    /// Bytes of tape that the pass read.
    pub bytes_read: u64,
}

impl Step {
    /// The inputs of its pass, to which its past goes over.
    pub fn take_inputs(&mut self, decoder: &Decoder, ports: &[Port]) -> TractResult<TVec<TValue>> {
        let (past, new) = (self.past.tokens, self.ids.len());
        let shapes = decoder.shapes(past, new);
        let mut inputs: Vec<Option<TValue>> = vec![None; ports.len()];
        for (cache, value) in decoder.caches.iter().zip(self.past.take_values()) {
            inputs[cache.past] = Some(value);
        }
        let mut put = |input: usize, numbers: Vec<i64>| -> TractResult<()> {
            let numbers = tensor1(&numbers).into_shape(&shapes[input])?;
            let numbers = numbers.cast_to_dt(datum(ports[input].dtype)?)?.into_owned();
            inputs[input] = Some(numbers.into_tvalue());
            Ok(())
        };
        put(decoder.ids, self.ids.iter().map(|id| i64::from(*id)).collect())?;
        if let Some(input) = decoder.mask {
            put(input, vec![1; past + new])?;
        }
        if let Some(input) = decoder.positions {
            put(input, (past as i64..).take(new).collect())?;
        }
        if let Some(input) = decoder.kept {
            put(input, vec![1])?;
        }
        inputs.into_iter().map(|input| input.context("an input is not known")).collect()
    }
}
