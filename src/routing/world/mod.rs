//! The pure merge: Services, EndpointSlices and Pods in, the endpoints of each Service port out.

pub mod merge;
pub mod merged;
pub mod objects;
mod pods;
mod slice;
#[cfg(test)]
mod tests;
