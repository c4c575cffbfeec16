//! Lists and ignored values that a client cannot make too large. A few bytes of JSON can become many bytes of memory,
//! so a list is refused while it is being read, not afterwards.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Deepest nesting of a value that is not used.
pub const MAX_DEPTH: usize = 64;

/// A list of at most `N` entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounded<T, const N: usize>(pub Vec<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for Bounded<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const N: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for List<T, N> {
            type Value = Bounded<T, N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {N} entries")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element()? {
                    if entries.len() == N {
                        return Err(A::Error::custom(format_args!(
                            "more than {N} entries; send fewer"
                        )));
                    }
                    entries.push(entry);
                }
                Ok(Bounded(entries))
            }
        }

        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// Any value, not kept, nested no deeper than [`MAX_DEPTH`].
#[derive(Debug, Clone, Copy)]
pub struct Ignored {
    depth: usize,
}

impl Ignored {
    /// A value of a field.
    pub const FIELD: Self = Self { depth: 1 };

    fn inner<E: Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format_args!(
                "it is nested more than {MAX_DEPTH} levels deep; send a flatter value"
            )));
        }
        Ok(Self {
            depth: self.depth + 1,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Ignored {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Ignored {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        while list.next_element_seed(inner)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let inner = self.inner()?;
        while map.next_key_seed(inner)?.is_some() {
            map.next_value_seed(inner)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_refused_while_it_is_read() {
        assert_eq!(serde_json::from_str::<Bounded<u8, 2>>("[1,2]").unwrap().0, [1, 2]);
        let error = serde_json::from_str::<Bounded<u8, 2>>("[1,2,3").unwrap_err();
        assert!(error.to_string().contains("more than 2 entries"), "{error}");
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        let read = |text: &str| Ignored::FIELD.deserialize(&mut serde_json::Deserializer::from_str(text));
        read(&nested(MAX_DEPTH - 1)).unwrap();
        let error = read(&nested(MAX_DEPTH)).unwrap_err();
        assert!(error.to_string().contains("nested more than 64"), "{error}");
        read(r#"{"a": [null, true, -1, 1.5, "x", {"b": {}}]}"#).unwrap();
    }
}
