//! Generated types, servers and clients of the `ovfleet.v1` API, and nothing else.
//!
//! The contract is `proto/ovfleet/v1/*.proto` at the root of the repository;
//! its comments are the manual and become the documentation of these types.

mod codec;

/// The `ovfleet.v1` package.
pub mod v1 {
    tonic::include_proto!("ovfleet.v1");
}

/// `Debug` of messages that hold passwords: the name, and that there is more.
macro_rules! redacted {
    ($($message:ident),+ $(,)?) => {
        $(impl std::fmt::Debug for v1::$message {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($message)).finish_non_exhaustive()
            }
        })+
    };
}

// The same list as in the build script.
redacted!(
    CredentialsAnswer,
    PasswordAnswer,
    NeedStrAnswer,
    ChallengeResponseAnswer,
    ExecuteCommandRequest,
);

/// The encoded `FileDescriptorSet` of the package, its imports included.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ovfleet.v1.bin"));
