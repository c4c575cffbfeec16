//! Modules, kernels and statements.

use std::collections::HashMap;

use super::ir::{AnyReg, Inst, Op, Pred, Reg};
use super::lex::{Lexed, Token, lex};
use super::operand::{Operand, Operands, Register, address, special};
use super::types::{Space, Type};
use super::{Kernel, Module, PtxError, Variable, forms};

type Result<T> = std::result::Result<T, PtxError>;

/// Parse a module. `place` gives each global or constant variable its address.
///
/// # Errors
/// [`PtxError`]: text that is no PTX, or a form that is not interpreted.
pub fn parse(text: &str, place: &mut dyn FnMut(&Variable) -> u64) -> Result<Module> {
    let mut parser = Parser {
        tokens: lex(text)?,
        at: 0,
        symbols: HashMap::new(),
        shared: Layout::default(),
    };
    let mut module = Module {
        target: 0,
        exact_target: false,
        kernels: Vec::new(),
    };
    while parser.peek().is_some() {
        parser.item(&mut module, place)?;
    }
    Ok(module)
}

/// Addresses handed out in one space.
#[derive(Debug, Clone, Copy, Default)]
struct Layout {
    bytes: usize,
}

impl Layout {
    fn add(&mut self, size: usize, align: usize) -> usize {
        let at = self.bytes.next_multiple_of(align.max(1));
        self.bytes = at + size;
        at
    }
}

/// Shared arrays whose size the launch decides start at a multiple of this.
const DYNAMIC_SHARED_ALIGN: usize = 128;

struct Parser {
    tokens: Vec<Lexed>,
    at: usize,
    symbols: HashMap<String, Symbol>,
    shared: Layout,
}

#[derive(Debug, Clone, Copy)]
enum Symbol {
    At(u64),
    /// `.extern .shared`: behind all shared variables of the kernel.
    Dynamic,
}

/// A declared variable: space, alignment, name, size and initial bytes.
struct Declared {
    space: Space,
    align: usize,
    name: String,
    size: usize,
    external: bool,
    initial: Vec<u8>,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|lexed| &lexed.token)
    }

    fn line(&self) -> u32 {
        let at = self.at.min(self.tokens.len().saturating_sub(1));
        self.tokens.get(at).map_or(1, |lexed| lexed.line)
    }

    fn wrong(&self, reason: impl Into<String>) -> PtxError {
        PtxError::syntax(self.line(), reason)
    }

    fn advance(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at)?.token.clone();
        self.at += 1;
        Some(token)
    }

    fn take(&mut self, punct: char) -> bool {
        let found = self.peek() == Some(&Token::Punct(punct));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, punct: char) -> Result<()> {
        if self.take(punct) {
            return Ok(());
        }
        Err(self.wrong(format!("`{punct}` is expected, not {:?}", self.peek())))
    }

    fn word(&mut self) -> Result<String> {
        match self.advance() {
            Some(Token::Word(word)) => Ok(word),
            other => Err(self.wrong(format!("a word is expected, not {other:?}"))),
        }
    }

    fn int(&mut self) -> Result<u64> {
        let negative = self.take('-');
        match self.advance() {
            Some(Token::Int(value)) if negative => Ok(value.wrapping_neg()),
            Some(Token::Int(value)) => Ok(value),
            other => Err(self.wrong(format!("a number is expected, not {other:?}"))),
        }
    }

    fn size(&mut self) -> Result<usize> {
        let value = self.int()?;
        usize::try_from(value).map_err(|_| self.wrong("a size is out of range"))
    }

    /// A directive at module level.
    fn item(&mut self, module: &mut Module, place: &mut dyn FnMut(&Variable) -> u64) -> Result<()> {
        let line = self.line();
        match self.word()?.as_str() {
            ".version" => {
                self.word_or_number();
                // `9.5` is lexed as the number 9 and the word `.5`.
                self.word_or_number();
            }
            ".target" => {
                let target = self.word()?;
                let digits = target.trim_start_matches("sm_");
                module.exact_target = digits.ends_with(|last: char| last.is_ascii_alphabetic());
                module.target = digits
                    .trim_end_matches(|last: char| last.is_ascii_alphabetic())
                    .parse()
                    .map_err(|_| self.wrong(format!("`{target}` is no target")))?;
                while self.take(',') {
                    self.word()?;
                }
            }
            ".address_size" => {
                if self.int()? != 64 {
                    return Err(PtxError::form(line, ".address_size 32"));
                }
            }
            ".visible" | ".weak" | ".extern" if self.at_variable() => {
                let external = self.tokens[self.at - 1].token == Token::Word(".extern".into());
                self.variable(external, place)?;
            }
            ".visible" | ".weak" => {}
            ".entry" => {
                let kernel = self.kernel()?;
                module.kernels.push(kernel);
            }
            ".global" | ".const" | ".shared" => {
                self.at -= 1;
                self.variable(false, place)?;
            }
            other => return Err(PtxError::form(line, other)),
        }
        Ok(())
    }

    fn word_or_number(&mut self) {
        if matches!(self.peek(), Some(Token::Word(word)) if word.len() <= 4)
            || matches!(self.peek(), Some(Token::Int(_)))
        {
            self.at += 1;
        }
    }

    fn at_variable(&self) -> bool {
        matches!(self.peek(), Some(Token::Word(word)) if matches!(word.as_str(), ".global" | ".const" | ".shared"))
    }

    fn variable(&mut self, external: bool, place: &mut dyn FnMut(&Variable) -> u64) -> Result<()> {
        let line = self.line();
        let declared = self.declaration(external)?;
        let symbol = match declared.space {
            Space::Shared if declared.external => Symbol::Dynamic,
            Space::Shared => Symbol::At(self.shared.add(declared.size, declared.align) as u64),
            _ if declared.external => return Err(PtxError::form(line, ".extern variable")),
            _ => Symbol::At(place(&Variable {
                name: declared.name.clone(),
                size: declared.size,
                align: declared.align,
                initial: declared.initial,
            })),
        };
        self.symbols.insert(declared.name, symbol);
        Ok(())
    }

    /// `.space .align N .type name[size] = {…};`
    fn declaration(&mut self, external: bool) -> Result<Declared> {
        let line = self.line();
        let space = self.word()?;
        let space = Space::named(space.trim_start_matches('.')).ok_or_else(|| PtxError::form(line, space))?;
        let mut align = None;
        let ty = loop {
            let word = self.word()?;
            match word.as_str() {
                ".align" => align = Some(self.size()?),
                ".attribute" => return Err(PtxError::form(line, word)),
                _ => {
                    break Type::named(word.trim_start_matches('.'))
                        .ok_or_else(|| PtxError::form(line, word))?;
                }
            }
        };
        let name = self.word()?;
        let mut count = 1;
        while self.take('[') {
            if !self.take(']') {
                count *= self.size()?;
                self.expect(']')?;
            }
        }
        let mut initial = Vec::new();
        if self.take('=') {
            self.initial(ty, &mut initial)?;
        }
        self.expect(';')?;
        Ok(Declared {
            space,
            align: align.unwrap_or(ty.bytes()),
            name,
            size: if external { 0 } else { count * ty.bytes() },
            external,
            initial,
        })
    }

    fn initial(&mut self, ty: Type, bytes: &mut Vec<u8>) -> Result<()> {
        if self.take('{') {
            while !self.take('}') {
                self.initial(ty, bytes)?;
                self.take(',');
            }
            return Ok(());
        }
        let value = match self.peek() {
            Some(Token::F32(bits)) => u64::from(*bits),
            Some(Token::F64(bits)) => *bits,
            _ => {
                let value = self.int()?;
                self.at -= 1;
                value
            }
        };
        self.at += 1;
        bytes.extend_from_slice(&value.to_le_bytes()[..ty.bytes()]);
        Ok(())
    }

    fn kernel(&mut self) -> Result<Kernel> {
        let name = self.word()?;
        let module_shared = self.shared;
        let outer = self.symbols.clone();
        let params = self.params()?;
        let mut max_threads = None;
        while !self.take('{') {
            match self.word()?.as_str() {
                ".maxntid" => max_threads = Some(self.product()?),
                ".reqntid" => max_threads = Some(self.product()?),
                ".minnctapersm" | ".maxnreg" => {
                    self.int()?;
                }
                other => return Err(PtxError::form(self.line(), other)),
            }
        }
        let mut body = Body::default();
        self.statements(&mut body)?;
        let static_shared = self.shared.bytes;
        let kernel = body.finish(name, params, max_threads, static_shared)?;
        self.shared = module_shared;
        self.symbols = outer;
        Ok(kernel)
    }

    fn product(&mut self) -> Result<u32> {
        let mut product = self.int()?;
        while self.take(',') {
            product = product.saturating_mul(self.int()?);
        }
        u32::try_from(product).map_err(|_| self.wrong("too many threads"))
    }

    fn params(&mut self) -> Result<Vec<(usize, usize)>> {
        let (mut params, mut layout) = (Vec::new(), Layout::default());
        if !self.take('(') {
            return Ok(params);
        }
        while !self.take(')') {
            let line = self.line();
            if self.word()? != ".param" {
                return Err(self.wrong("`.param` is expected"));
            }
            let mut align = None;
            let ty = loop {
                let word = self.word()?;
                match word.as_str() {
                    ".align" => align = Some(self.size()?),
                    ".ptr" | ".global" | ".const" | ".shared" => {}
                    _ => match Type::named(word.trim_start_matches('.')) {
                        Some(ty) => break ty,
                        None => return Err(PtxError::form(line, word)),
                    },
                }
            };
            // `.ptr .align 16` may follow the type.
            while matches!(self.peek(), Some(Token::Word(word)) if word.starts_with('.')) {
                if self.word()? == ".align" {
                    self.size()?;
                }
            }
            let name = self.word()?;
            let mut size = ty.bytes();
            if self.take('[') {
                size *= self.size()?;
                self.expect(']')?;
            }
            let at = layout.add(size, align.unwrap_or(ty.bytes()));
            self.symbols.insert(name, Symbol::At(at as u64));
            params.push((at, size));
            self.take(',');
        }
        Ok(params)
    }

    /// Statements up to the closing brace. Inner braces open a scope for register names.
    fn statements(&mut self, body: &mut Body) -> Result<()> {
        loop {
            let line = self.line();
            if self.take('}') {
                return Ok(());
            }
            if self.take('{') {
                let outer = body.names.clone();
                self.statements(body)?;
                body.names = outer;
                continue;
            }
            if self.take('@') {
                let guard = self.guard(body)?;
                let opcode = self.word()?;
                self.instruction(body, guard, &opcode, line)?;
                continue;
            }
            let word = self.word()?;
            if word.starts_with('.') {
                self.directive(body, &word, line)?;
            } else if self.take(':') {
                body.label(&word, line)?;
            } else {
                self.instruction(body, Pred::Const(true), &word, line)?;
            }
        }
    }

    fn guard(&mut self, body: &Body) -> Result<Pred> {
        let negated = self.take('!');
        let name = self.word()?;
        match body.register(&name) {
            Some(Register::Pred(reg)) => Ok(Pred::Reg { reg, negated }),
            _ => Err(self.wrong(format!("`{name}` is no predicate"))),
        }
    }

    fn directive(&mut self, body: &mut Body, word: &str, line: u32) -> Result<()> {
        match word {
            ".reg" => return self.registers(body),
            ".shared" | ".local" => {
                self.at -= 1;
                let declared = self.declaration(false)?;
                let layout = if declared.space == Space::Shared {
                    &mut self.shared
                } else {
                    &mut body.local
                };
                let at = layout.add(declared.size, declared.align);
                self.symbols.insert(declared.name, Symbol::At(at as u64));
            }
            ".pragma" => {
                self.advance();
                self.expect(';')?;
            }
            ".loc" => {
                // Ends with its line.
                while self.peek().is_some() && self.line() == line {
                    self.at += 1;
                }
            }
            other => return Err(PtxError::form(line, other)),
        }
        Ok(())
    }

    /// `.reg .b32 %r<10>;` or `.reg .pred p, q;`
    fn registers(&mut self, body: &mut Body) -> Result<()> {
        let line = self.line();
        let word = self.word()?;
        let ty = Type::named(word.trim_start_matches('.')).ok_or_else(|| PtxError::form(line, word))?;
        loop {
            let name = self.word()?;
            if self.take('<') {
                let count = self.size()?;
                self.expect('>')?;
                for i in 0..count {
                    body.declare(format!("{name}{i}"), ty, line)?;
                }
            } else {
                body.declare(name, ty, line)?;
            }
            if !self.take(',') {
                return self.expect(';');
            }
        }
    }

    fn instruction(&mut self, body: &mut Body, guard: Pred, opcode: &str, line: u32) -> Result<()> {
        let mut operands = Vec::new();
        if !self.take(';') {
            loop {
                operands.push(self.operand(body)?);
                if !self.take(',') {
                    self.expect(';')?;
                    break;
                }
            }
        }
        let mut operands = Operands::new(operands, line);
        let op = if matches!(opcode, "bra" | "bra.uni") {
            body.branches.push((body.code.len(), operands.label()?));
            Op::Bra { target: 0 }
        } else {
            forms::decode(opcode, &mut operands, line)?
        };
        operands.end()?;
        body.code.push(Inst { guard, op, line });
        Ok(())
    }

    fn operand(&mut self, body: &Body) -> Result<Operand> {
        if self.take('[') {
            let operand = self.memory(body)?;
            self.expect(']')?;
            return Ok(operand);
        }
        if self.take('{') {
            let mut items = Vec::new();
            while !self.take('}') {
                items.push(self.operand(body)?);
                self.take(',');
            }
            return Ok(Operand::Vector(items));
        }
        if self.take('!') {
            return match self.operand(body)? {
                Operand::Register(Register::Pred(reg)) => Ok(Operand::NotPred(reg)),
                other => Err(self.wrong(format!("{other:?} cannot be negated"))),
            };
        }
        if self.peek() == Some(&Token::Punct('-')) {
            return Ok(Operand::Int(self.int()?));
        }
        match self.advance() {
            Some(Token::Int(value)) => Ok(Operand::Int(value)),
            Some(Token::F32(bits)) => Ok(Operand::F32(bits)),
            Some(Token::F64(bits)) => Ok(Operand::F64(bits)),
            Some(Token::Word(word)) => self.named(body, word),
            other => Err(self.wrong(format!("an operand is expected, not {other:?}"))),
        }
    }

    fn named(&mut self, body: &Body, word: String) -> Result<Operand> {
        if let Some(register) = body.register(&word) {
            if !self.take('|') {
                return Ok(Operand::Register(register));
            }
            let other = self.word()?;
            let other = body
                .register(&other)
                .ok_or_else(|| self.wrong(format!("`{other}` is not declared")))?;
            return Ok(Operand::Two(register, other));
        }
        if word == "_" {
            return Ok(Operand::Sink);
        }
        if let Some(special) = special(&word) {
            return Ok(Operand::Special(special));
        }
        if let Some(address) = self.symbol(&word) {
            let offset = if self.take('+') { self.int()? } else { 0 };
            return Ok(Operand::Symbol(address.wrapping_add(offset)));
        }
        if word.starts_with('%') {
            return Err(PtxError::form(self.line(), word));
        }
        Ok(Operand::Label(word))
    }

    fn symbol(&self, name: &str) -> Option<u64> {
        Some(match self.symbols.get(name)? {
            Symbol::At(address) => *address,
            // NVRTC declares all static variables of a kernel at its head, so their extent is known here.
            Symbol::Dynamic => dynamic_shared(self.shared.bytes) as u64,
        })
    }

    /// `[reg+offset]`, `[symbol+offset]` or `[constant]`, behind the bracket.
    fn memory(&mut self, body: &Body) -> Result<Operand> {
        let (base, start) = match self.advance() {
            Some(Token::Int(value)) => (None, value),
            Some(Token::Word(word)) => match body.register(&word) {
                Some(Register::Data(reg)) => (Some(reg), 0),
                Some(Register::Pred(_)) => return Err(self.wrong("a predicate is no address")),
                None => match self.symbol(&word) {
                    Some(address) => (None, address),
                    None => return Err(self.wrong(format!("`{word}` is not declared"))),
                },
            },
            other => return Err(self.wrong(format!("an address is expected, not {other:?}"))),
        };
        let offset = if self.take('+') { self.int()? } else { 0 };
        let offset = start.wrapping_add(offset).cast_signed();
        address(base, offset)
            .map(Operand::Memory)
            .ok_or_else(|| self.wrong("an address register has 32 or 64 bits"))
    }
}

/// Where arrays of launch-time size start, behind `static_bytes`.
pub(crate) fn dynamic_shared(static_bytes: usize) -> usize {
    static_bytes.next_multiple_of(DYNAMIC_SHARED_ALIGN)
}

/// A kernel's body while it is read.
#[derive(Default)]
struct Body {
    names: HashMap<String, Register>,
    counts: [usize; 3],
    local: Layout,
    labels: HashMap<String, u32>,
    branches: Vec<(usize, String)>,
    code: Vec<Inst>,
}

impl Body {
    fn register(&self, name: &str) -> Option<Register> {
        self.names.get(name).copied()
    }

    fn declare(&mut self, name: String, ty: Type, line: u32) -> Result<()> {
        let file = match ty {
            Type::Pred => 2,
            ty if ty.wide() => 1,
            _ => 0,
        };
        let reg = Reg::try_from(self.counts[file])
            .map_err(|_| PtxError::syntax(line, "a kernel may declare 65,536 registers of one kind"))?;
        self.counts[file] += 1;
        let register = match file {
            2 => Register::Pred(reg),
            _ => Register::Data(AnyReg {
                reg,
                bytes: ty.bytes().max(2) as u8,
            }),
        };
        self.names.insert(name, register);
        Ok(())
    }

    fn label(&mut self, name: &str, line: u32) -> Result<()> {
        let at = self.code.len() as u32;
        match self.labels.insert(name.to_owned(), at) {
            None => Ok(()),
            Some(_) => Err(PtxError::syntax(line, format!("the label `{name}` stands twice"))),
        }
    }

    fn finish(
        mut self,
        name: String,
        params: Vec<(usize, usize)>,
        max_threads: Option<u32>,
        shared_bytes: usize,
    ) -> Result<Kernel> {
        for (at, label) in std::mem::take(&mut self.branches) {
            let line = self.code[at].line;
            let target = *self
                .labels
                .get(&label)
                .ok_or_else(|| PtxError::syntax(line, format!("there is no label `{label}`")))?;
            self.code[at].op = Op::Bra { target };
        }
        // Running off the end is a return.
        let line = self.code.last().map_or(0, |inst| inst.line);
        self.code.push(Inst {
            guard: Pred::Const(true),
            op: Op::Exit,
            line,
        });
        Ok(Kernel {
            name,
            params,
            shared_bytes,
            local_bytes: self.local.bytes,
            max_threads,
            registers: self.counts,
            code: self.code,
        })
    }
}
