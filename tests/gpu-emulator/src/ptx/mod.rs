//! PTX text to typed instructions.
//!
//! | module | what it is |
//! |---|---|
//! | `lex` | words and numbers with their lines |
//! | `parse` | a module: variables, kernels, their registers, labels and statements |
//! | `operand` | operands of one instruction, resolved to registers, constants and addresses |
//! | `forms` | the whitelist: which exact instruction forms exist, and what each means |
//! | `ir`, `types` | the result |
//!
//! A form that is not in the whitelist is refused with its line. A near match would compute something else in silence.
//! Reference: NVIDIA, *PTX ISA*, version 9.

mod forms;
pub(crate) mod ir;
mod lex;
mod operand;
mod parse;
pub(crate) mod types;

pub(crate) use parse::dynamic_shared;
pub use parse::parse;

/// Why PTX was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PtxError {
    /// It is no PTX.
    #[error("PTX line {line}: {reason}")]
    Syntax {
        /// Line, from 1.
        line: u32,
        /// What is wrong there.
        reason: String,
    },
    /// It may be PTX, but this interpreter does not know the form.
    #[error(
        "PTX line {line}: the form `{form}` is not among those the emulator interprets; add it to ptx/forms"
    )]
    Form {
        /// Line, from 1.
        line: u32,
        /// Opcode with its modifiers, or the directive.
        form: String,
    },
}

impl PtxError {
    fn syntax(line: u32, reason: impl Into<String>) -> Self {
        Self::Syntax {
            line,
            reason: reason.into(),
        }
    }

    fn form(line: u32, form: impl Into<String>) -> Self {
        Self::Form {
            line,
            form: form.into(),
        }
    }
}

/// A parsed module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Number of the target: 90 for `sm_90a`.
    pub target: u32,
    /// Whether the target is the architecture-specific one, such as `sm_90a`.
    pub exact_target: bool,
    /// Entry points.
    pub kernels: Vec<Kernel>,
}

/// One entry point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// As in `.entry`.
    pub name: String,
    /// Offset and size of each parameter in the parameter block, in bytes.
    pub params: Vec<(usize, usize)>,
    /// Bytes of shared memory known when compiled.
    pub shared_bytes: usize,
    /// Bytes of local memory of one thread.
    pub local_bytes: usize,
    /// Most threads of a block, from `.maxntid`.
    pub max_threads: Option<u32>,
    /// Registers in each file: 32-bit, 64-bit, predicates.
    pub(crate) registers: [usize; 3],
    pub(crate) code: Vec<ir::Inst>,
}

impl Kernel {
    /// Bytes of all parameters.
    #[must_use]
    pub fn param_bytes(&self) -> usize {
        self.params.last().map_or(0, |(offset, size)| offset + size)
    }
}

/// A variable of a module that lives in global or constant memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Name as mangled by the compiler.
    pub name: String,
    /// Bytes.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
    /// Initial bytes; shorter than `size` when the rest is zero.
    pub initial: Vec<u8>,
}
