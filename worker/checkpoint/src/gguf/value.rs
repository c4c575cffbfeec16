//! Values of GGUF's metadata.
#![cfg_attr(
    not(test),
    warn(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "what comes in from outside must not be able to end the process, nor become another number"
    )
)]

/// A metadata value. Integers are widened, as no reader cares for their width.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// f32 as stored (f64 is narrowed).
    Float(f32),
    /// A truth value.
    Bool(bool),
    /// UTF-8 text.
    Text(String),
    /// Values of one type.
    Array(Vec<GgufValue>),
}

impl GgufValue {
    /// A non-negative integer that fits.
    #[must_use]
    pub fn as_u32(&self) -> Option<u32> {
        match self {
            Self::Unsigned(value) => u32::try_from(*value).ok(),
            Self::Signed(value) => u32::try_from(*value).ok(),
            _ => None,
        }
    }

    /// A float.
    #[must_use]
    pub fn as_f32(&self) -> Option<f32> {
        if let Self::Float(value) = self {
            Some(*value)
        } else {
            None
        }
    }

    /// A truth value.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self {
            Some(*value)
        } else {
            None
        }
    }

    /// Text.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Self::Text(value) = self {
            Some(value)
        } else {
            None
        }
    }

    /// The elements of an array.
    #[must_use]
    pub fn as_array(&self) -> Option<&[GgufValue]> {
        if let Self::Array(values) = self {
            Some(values)
        } else {
            None
        }
    }
}
