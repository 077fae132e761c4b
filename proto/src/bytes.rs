//! Fields of fixed little-endian layouts.

/// The `N` bytes from `AT` on. A field outside of the layout does not compile, so reading one
/// cannot panic.
pub(crate) const fn field<const AT: usize, const N: usize, const LEN: usize>(
    layout: &[u8; LEN],
) -> [u8; N] {
    const { assert!(AT + N <= LEN, "the field lies outside of the layout") };
    let mut bytes = [0; N];
    let mut i = 0;
    while i < N {
        bytes[i] = layout[AT + i];
        i += 1;
    }
    bytes
}

/// Sets the bytes from `AT` on.
pub(crate) fn set_field<const AT: usize, const N: usize, const LEN: usize>(
    layout: &mut [u8; LEN],
    bytes: [u8; N],
) {
    const { assert!(AT + N <= LEN, "the field lies outside of the layout") };
    layout[AT..AT + N].copy_from_slice(&bytes);
}
