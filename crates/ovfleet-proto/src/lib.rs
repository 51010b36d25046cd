//! Generated types, servers and clients of the `ovfleet.v1` API, and nothing else.
//!
//! The contract is `proto/ovfleet/v1/*.proto` at the root of the repository;
//! its comments are the manual and become the documentation of these types.

mod codec;

/// The `ovfleet.v1` package.
pub mod v1 {
    tonic::include_proto!("ovfleet.v1");
}

/// The encoded `FileDescriptorSet` of the package, its imports included.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ovfleet.v1.bin"));
