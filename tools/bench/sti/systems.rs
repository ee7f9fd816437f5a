//! What is compared: the STI paper's baselines, its own plans, and ours.

use std::fmt;
use std::str::FromStr;

/// A way to answer within a time, by its name in the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum System {
    /// All is loaded at full precision, then computed.
    LoadAll,
    /// Layer after layer at one precision, the next one loaded beside the computing.
    Pipeline { variant: String },
    /// All stays in memory, at one precision.
    Preload { variant: String },
    /// The paper's two stages: a precision for each tensor, the head of the tape preloaded.
    TwoStages,
    /// Hermes's choice.
    Hermes,
}

/// The paper's six baselines, its own and ours; "full" is the model's best variant. 5 bits stand for
/// its 6, which `--variants auto` does not write.
pub const SYSTEMS: &str =
    "load-all,pipeline-a2,pipeline-a5,pipeline-full,preload-a5,preload-full,sti,hermes";

/// The variant that a model has as its best, as users write it here.
const FULL: &str = "full";

impl System {
    /// Whether it follows a latency target: the others take as long as they take.
    pub fn follows_target(&self) -> bool {
        matches!(self, System::TwoStages | System::Hermes)
    }

    /// The variant that it plays of a model with these, the best first; none where it chooses.
    pub fn variant<'a>(&'a self, variants: &'a [String]) -> Option<&'a str> {
        let best = variants.first().map(String::as_str);
        match self {
            System::LoadAll => best,
            System::Pipeline { variant } | System::Preload { variant } if variant == FULL => best,
            System::Pipeline { variant } | System::Preload { variant } => Some(variant),
            System::TwoStages | System::Hermes => None,
        }
    }
}

impl FromStr for System {
    type Err = String;

    fn from_str(text: &str) -> Result<System, String> {
        let named = |prefix| text.strip_prefix(prefix).filter(|variant: &&str| !variant.is_empty());
        match text {
            "load-all" => Ok(System::LoadAll),
            "sti" => Ok(System::TwoStages),
            "hermes" => Ok(System::Hermes),
            _ => match (named("pipeline-"), named("preload-")) {
                (Some(variant), _) => Ok(System::Pipeline { variant: variant.to_owned() }),
                (_, Some(variant)) => Ok(System::Preload { variant: variant.to_owned() }),
                _ => Err(format!("there are {SYSTEMS}, with any variant for a2 and a5")),
            },
        }
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            System::LoadAll => f.pad("load-all"),
            System::Pipeline { variant } => f.pad(&format!("pipeline-{variant}")),
            System::Preload { variant } => f.pad(&format!("preload-{variant}")),
            System::TwoStages => f.pad("sti"),
            System::Hermes => f.pad("hermes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in SYSTEMS.split(',') {
            assert_eq!(name.parse::<System>().unwrap().to_string(), name);
        }
        assert!("pipeline-".parse::<System>().is_err() && "ours".parse::<System>().is_err());
        let variants = ["f32", "a6"].map(str::to_owned);
        let variant =
            |name: &str| name.parse::<System>().unwrap().variant(&variants).map(str::to_owned);
        assert_eq!(variant("pipeline-full").as_deref(), Some("f32"));
        assert_eq!(variant("preload-a6").as_deref(), Some("a6"));
        assert_eq!(variant("hermes"), None);
    }
}
