//! The generated messages, clients and servers of Holdfast's interfaces, and their descriptors for server reflection.
//! Written by hand is only the [`codec`]: the contract is in the `.proto` files beside this crate.

#![allow(clippy::all, clippy::pedantic, missing_docs, reason = "generated code")]

pub mod codec;

mod generated {
    include!(concat!(env!("OUT_DIR"), "/holdfast.rs"));
}

pub use generated::holdfast::{link, r#type, v1};

/// All files and what they import, as a serialised `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/holdfast.binpb"));
