//! The whitelist of instruction forms.
//!
//! Each module matches the whole dotted opcode, modifier by modifier, and takes the operands that this form has.

mod convert;
mod data;
mod float;
mod integer;
mod memory;
mod sync;

use super::PtxError;
use super::ir::Op;
use super::operand::Operands;

type Result<T> = std::result::Result<T, PtxError>;

/// The instruction `opcode` with these operands.
///
/// # Errors
/// [`PtxError::Form`] when no module knows the form; [`PtxError::Syntax`] when the operands do not fit it.
pub(super) fn decode(opcode: &str, operands: &mut Operands, line: u32) -> Result<Op> {
    let parts: Vec<&str> = opcode.split('.').collect();
    for family in [
        integer::decode,
        float::decode,
        data::decode,
        memory::decode,
        sync::decode,
        convert::decode,
    ] {
        if let Some(op) = family(&parts, operands)? {
            return Ok(op);
        }
    }
    Err(PtxError::form(line, opcode))
}

#[cfg(test)]
mod tests {
    use crate::ptx::{PtxError, parse};

    fn kernel(body: &str) -> String {
        format!(
            ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n.reg .b32 %r<9>;\n\
             .reg .b64 %rd<9>;\n.reg .f32 %f<9>;\n.reg .b16 %h<9>;\n.reg .pred %p<9>;\n{body}\nret;\n}}\n"
        )
    }

    fn refusal(body: &str) -> PtxError {
        parse(&kernel(body), &mut |_| 0).unwrap_err()
    }

    #[test]
    fn refuses_near_matches_by_name_and_line() {
        for form in [
            "add.sat.s32 %r1, %r2, %r3;",
            "fma.rz.bf16x2 %r1, %r2, %r3, %r4;",
            "ld.global.v3.u32 {%r1,%r2,%r3}, [%rd1];",
            "ld.weird.u32 %r1, [%rd1];",
            "mma.sync.aligned.m16n8k16.row.row.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%f1,%f2,%f3,%f4};",
            "cvt.rna.tf32.f32 %r1, %f1;",
            "shfl.bfly.b32 %r1, %r2, %r3, %r4;",
            "cp.async.cg.shared.global [%r1], [%rd1], 8;",
            "wgmma.fence.sync.aligned;",
        ] {
            let opcode = form.split(' ').next().unwrap().trim_end_matches(';').to_owned();
            assert_eq!(
                refusal(form),
                PtxError::Form {
                    line: 11,
                    form: opcode
                },
                "{form}"
            );
        }
    }

    #[test]
    fn refuses_operands_of_the_wrong_kind_or_number() {
        for body in [
            "add.s32 %r1, %r2;",
            "add.s32 %r1, %r2, %r3, %r4;",
            "add.s32 %rd1, %r2, %r3;",
            "add.s64 %rd1, %r2, %rd3;",
            "add.f32 %f1, %f2, %p1;",
            "add.s32 %r1, %r77, %r3;",
            "@%r1 ret;",
            "bra nowhere;",
        ] {
            assert!(
                matches!(refusal(body), PtxError::Syntax { .. } | PtxError::Form { .. }),
                "{body}"
            );
        }
        // An f32 constant is no integer.
        assert!(matches!(
            refusal("add.s32 %r1, %r2, 0f3F800000;"),
            PtxError::Syntax { line: 11, .. }
        ));
    }
}
