//! What is done to the table before and after its walk: constraints that are enforced without a long lock, and the
//! trigger that keeps new rows in step while old code still runs.
//!
//! May use `database`, `state` and, of `walk`, the table and the settings of a batch. Knows nothing of job files and
//! daemons: what is wanted comes in as a [`Wanted`] or a [`Sync`].
//!
//! Read in this order: [`plan`] (pure: what the catalogs say in, the next step out), [`facts`] (what they say),
//! [`step`] (carrying one out, and how long it may wait for a lock), [`obstacle`] (who was in the way), [`sync`]
//! (the trigger).

pub mod facts;
pub mod obstacle;
pub mod plan;
pub mod step;
pub mod sync;

pub use plan::{Step, Traces, Wanted};
pub use sync::Sync;

/// No name in PostgreSQL is longer, in bytes.
const LONGEST_NAME: usize = 63;

/// A name made of `prefix`, `middle` and `suffix`. One that would be too long is cut in the middle, and has a
/// checksum of what was cut, so that two of them differ.
fn cut_name(prefix: &str, middle: &str, suffix: &str) -> String {
    let whole = format!("{prefix}{middle}{suffix}");
    if whole.len() <= LONGEST_NAME {
        return whole;
    }
    // FNV-1a: the same in every version of the program.
    let checksum =
        middle.bytes().fold(0x811c_9dc5_u32, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mut room = LONGEST_NAME - prefix.len() - suffix.len() - "_00000000".len();
    while !middle.is_char_boundary(room) {
        room -= 1;
    }
    format!("{prefix}{}_{checksum:08x}{suffix}", &middle[..room])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_fits_and_differs_from_others() {
        assert_eq!(cut_name("a_", "email", "_b"), "a_email_b");
        let (one, other) = ("ä".repeat(40), "ä".repeat(39) + "o");
        let (one, other) = (cut_name("a_", &one, "_b"), cut_name("a_", &other, "_b"));
        assert!(one.len() <= LONGEST_NAME && one.ends_with("_b"), "{one}");
        assert_ne!(one, other);
    }
}
