//! Generated types, servers and clients of the `ovfleet.v1` API, and nothing else.
//!
//! The contract is `proto/ovfleet/v1/*.proto` at the root of the repository;
//! its comments are the manual and become the documentation of these types.

/// Packages by their protobuf names, as generated code refers to them.
mod packages {
    pub mod google {
        pub mod rpc {
            tonic::include_proto!("google.rpc");
        }
    }
    pub mod ovfleet {
        pub mod v1 {
            tonic::include_proto!("ovfleet.v1");
        }
    }
}

pub use packages::google::rpc;
pub use packages::ovfleet::v1;

/// The encoded `FileDescriptorSet` of the package, its imports included.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ovfleet.v1.bin"));
