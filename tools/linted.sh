#!/usr/bin/env bash
# Run cargo so that clippy's driver compiles our own crates, its warnings being errors:
# tools/linted.sh cargo test ... Dependencies are then built once, for programs, tests and lints;
# `cargo clippy` would check each of them beside, tract among them: minutes.
export RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-Dwarnings__CLIPPY_HACKERY__
exec "$@"
