mod disks;
mod gantt;
pub mod measure;
mod policy;
