//! Packed lists: entries of fixed layout, one after the other, in a `bytes` field of a message.
//!
//! Replies to reads carry one reference a page, by the hundred. Protocol Buffers would spend a tag
//! and a length on each and decode them into a list of their own; these are read in place.

use crate::bytes::{field, set_field};
use crate::status::Status;

/// A packed list that does not end where an entry ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a list of {len} bytes does not consist of entries of {entry} bytes")]
pub struct ListError {
    /// Length of the list in bytes.
    pub len: usize,
    /// Length of one entry in bytes.
    pub entry: usize,
}

impl From<ListError> for Status {
    fn from(_: ListError) -> Self {
        Self::BadMessage
    }
}

/// Defines an entry by its fields and their offsets: the struct, its encoding and its list.
macro_rules! entry {
    (
        $(#[$doc:meta])*
        $name:ident, $len:literal bytes {
            $( $(#[$field_doc:meta])* $at:literal $field:ident: $type:ty, )*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name {
            $( $(#[$field_doc])* pub $field: $type, )*
        }

        impl $name {
            /// Length of an encoded entry in bytes.
            pub const LEN: usize = $len;

            /// Appends the entry to a list.
            pub fn push(self, list: &mut Vec<u8>) {
                let mut bytes = [0; Self::LEN];
                $( set_field::<$at, { size_of::<$type>() }, _>(
                    &mut bytes,
                    self.$field.to_le_bytes(),
                ); )*
                list.extend_from_slice(&bytes);
            }

            /// The entries of a list, in order.
            ///
            /// # Errors
            /// [`ListError`] where the length is not a multiple of [`Self::LEN`].
            pub fn iter(
                list: &[u8],
            ) -> Result<impl ExactSizeIterator<Item = Self> + DoubleEndedIterator + Clone, ListError>
            {
                let (entries, rest) = list.as_chunks::<{ Self::LEN }>();
                if !rest.is_empty() {
                    return Err(ListError { len: list.len(), entry: Self::LEN });
                }
                Ok(entries.iter().map(|bytes| Self {
                    $( $field: <$type>::from_le_bytes(
                        field::<$at, { size_of::<$type>() }, _>(bytes),
                    ), )*
                }))
            }
        }
    };
}

entry! {
    /// A reference on the wire: where a page lies in the server's memory. The file is that of the
    /// message it comes in.
    WireRef, 24 bytes {
        /// The page: its number within the file, from 0 on.
        0 block: u64,
        /// The generation of the slot that holds the page.
        8 generation: u64,
        /// The chunk that the slot is in.
        16 chunk: u32,
        /// The slot within the chunk, from 0 on.
        20 slot: u32,
    }
}

entry! {
    /// A page that the client has read one-sidedly. The server does not see such reads, and would
    /// evict what is read most if it were not told.
    WireHeat, 24 bytes {
        /// The number that the file bears in footers and references.
        0 file: u64,
        /// The page: its number within the file, from 0 on.
        8 block: u64,
        /// The generation that was read; heat of another one does not count.
        16 generation: u64,
    }
}
