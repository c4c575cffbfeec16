//! Grammars of the kinds that people send, each with what tells its texts, which shares no code with the compiler of grammars.

/// A grammar in llguidance's variant of Lark, and whether a text is one of its own.
pub(crate) type Grammar = (&'static str, fn(&str) -> bool);

/// All of them.
pub(crate) const GRAMMARS: [Grammar; 25] = [
    (r#"start: "(" start ")" | "x""#, |text| {
        nested(text, '(', ')', "x")
    }),
    (r#"start: "[" start "]" | """#, |text| nested(text, '[', ']', "")),
    (r#"start: "a" start "b" | "ab""#, |text| {
        let half = text.len() / 2;
        half > 0 && text == "a".repeat(half) + &"b".repeat(half)
    }),
    (r#"start: "a" start "a" | "b" start "b" | "c""#, |text| {
        text.chars().eq(text.chars().rev()) && text.matches('c').count() == 1 && only(text, "abc")
    }),
    (
        r#"start: pair ("," pair)*
pair: KEY "=" VALUE
KEY: /[a-z]{1,5}/
VALUE: /[0-9]{1,4}/"#,
        |text| {
            text.split(',').all(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or_default();
                sized(key, 1..=5) && only(key, LOWER) && sized(value, 1..=4) && only(value, DIGITS)
            })
        },
    ),
    (
        r#"start: sum
sum: product (("+" | "-") product)*
product: atom (("*" | "/") atom)*
atom: NUMBER | "(" sum ")"
NUMBER: /[1-9][0-9]{0,3}/"#,
        is_sum,
    ),
    (
        r#"start: "<a>" inner "</a>"
inner: start | WORD
WORD: /[a-z]+/"#,
        |text| {
            let mut inner = text;
            while let Some(inside) = inner
                .strip_prefix("<a>")
                .and_then(|rest| rest.strip_suffix("</a>"))
            {
                inner = inside;
            }
            inner != text && !inner.is_empty() && only(inner, LOWER)
        },
    ),
    (r#"start: "yes" | "no" | "perhaps""#, |text| {
        ["yes", "no", "perhaps"].contains(&text)
    }),
    (r#"start: /[A-Z][a-z]+/ " " /[A-Z][a-z]+/"#, |text| {
        let words: Vec<&str> = text.split(' ').collect();
        words.len() == 2 && words.into_iter().all(is_name)
    }),
    (
        r#"start: line+
line: "- " /[a-z ]{3,20}/ "\n""#,
        |text| {
            text.ends_with('\n')
                && text.lines().all(|line| {
                    line.strip_prefix("- ")
                        .is_some_and(|rest| sized(rest, 3..=20) && only(rest, " abcdefghijklmnopqrstuvwxyz"))
                })
        },
    ),
    (
        r#"start: "SELECT " COLUMN (", " COLUMN)* " FROM " TABLE (" LIMIT " NUMBER)?
COLUMN: "name" | "age" | "city"
TABLE: /[a-z]{2,8}/
NUMBER: /[1-9][0-9]?/"#,
        is_query,
    ),
    (
        r#"start: move (" " move){0,5}
move: ("N" | "E" | "S" | "W") /[1-9]/"#,
        |text| {
            let moves: Vec<&str> = text.split(' ').collect();
            moves.len() <= 6
                && moves.iter().all(|step| {
                    step.len() == 2 && "NESW".contains(&step[..1]) && "123456789".contains(&step[1..])
                })
        },
    ),
    (
        r#"start: "{" "\"n\":" N "}"
N: /[0-9]{1,6}/"#,
        |text| {
            text.strip_prefix("{\"n\":")
                .and_then(|rest| rest.strip_suffix('}'))
                .is_some_and(|n| sized(n, 1..=6) && only(n, DIGITS))
        },
    ),
    (
        r#"start: "Answer: " %json {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false}"#,
        |text| {
            let value = text
                .strip_prefix("Answer: ")
                .and_then(|rest| serde_json::from_str::<serde_json::Value>(rest).ok());
            value.is_some_and(|value| value["ok"].is_boolean() && value.as_object().unwrap().len() == 1)
        },
    ),
    (
        r#"start: HOUR ":" MINUTE " " ("am" | "pm")
HOUR: /1[0-2]|[1-9]/
MINUTE: /[0-5][0-9]/"#,
        |text| {
            let (hour, rest) = text.split_once(':').unwrap_or_default();
            let (minute, half) = rest.split_once(' ').unwrap_or_default();
            matches!(hour.parse(), Ok(1..=12))
                && minute.len() == 2
                && matches!(minute.parse(), Ok(0..=59))
                && ["am", "pm"].contains(&half)
        },
    ),
    (
        r#"start: (A | B)+
A: "tick "
B: "tock ""#,
        |text| !text.is_empty() && text.replace("tick ", "").replace("tock ", "").is_empty(),
    ),
    (
        r#"start: a b c
a: "x" | "xx"
b: "y"?
c: "z"{2,3}"#,
        |text| {
            ["x", "xx"].iter().any(|a| {
                ["", "y"]
                    .iter()
                    .any(|b| ["zz", "zzz"].iter().any(|c| text == format!("{a}{b}{c}")))
            })
        },
    ),
    (
        r#"start: QUOTED
QUOTED: "\"" /[^"\\\n]{1,30}/ "\"""#,
        |text| {
            let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            inner.is_some_and(|inner| sized(inner, 1..=30) && !inner.contains(['"', '\\', '\n']))
        },
    ),
    (
        r#"start: tree
tree: LEAF | "(" tree " " tree ")"
LEAF: /[a-z]/"#,
        |text| is_tree(text) == Some(""),
    ),
    (
        r#"start: word (" " word){2,4} "."
word: /[a-z]{2,9}/"#,
        |text| {
            let words: Vec<&str> = text.strip_suffix('.').unwrap_or_default().split(' ').collect();
            (3..=5).contains(&words.len()) && words.iter().all(|word| sized(word, 2..=9) && only(word, LOWER))
        },
    ),
    (
        r#"start: row row row
row: CELL CELL CELL "\n"
CELL: "x" | "o" | ".""#,
        |text| {
            let rows: Vec<&str> = text.split('\n').collect();
            rows.len() == 4
                && rows[3].is_empty()
                && rows[..3].iter().all(|row| row.len() == 3 && only(row, "xo."))
        },
    ),
    (
        r#"start: "if " VAR " then " body
body: "stop" | start
VAR: /[p-s]/"#,
        |text| {
            let mut rest = text;
            while let Some(behind) = rest.strip_prefix("if ") {
                match behind.split_at_checked(1) {
                    Some((var, behind)) if only(var, "pqrs") => {
                        rest = behind.strip_prefix(" then ").unwrap_or("no")
                    }
                    _ => return false,
                }
            }
            rest == "stop" && rest != text
        },
    ),
    (r#"start: "é" /[à-ü]{2}/ "ß""#, |text| {
        let letters: Vec<char> = text.chars().collect();
        matches!(letters[..], ['é', 'à'..='ü', 'à'..='ü', 'ß'])
    }),
    (
        r#"start: NUMBER UNIT
NUMBER: /[0-9]+(\.[0-9]{1,2})?/
UNIT: "km" | "kg" | "m""#,
        |text| {
            let number = ["km", "kg", "m"]
                .iter()
                .find_map(|unit| text.strip_suffix(unit))
                .unwrap_or_default();
            let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
            !whole.is_empty() && only(whole, DIGITS) && sized(part, 1..=2) && only(part, DIGITS)
        },
    ),
    (r#"start: "1" start? "0""#, |text| {
        let half = text.len() / 2;
        half > 0 && text == "1".repeat(half) + &"0".repeat(half)
    }),
];

const LOWER: &str = "abcdefghijklmnopqrstuvwxyz";
const DIGITS: &str = "0123456789";

fn only(text: &str, letters: &str) -> bool {
    text.chars().all(|letter| letters.contains(letter))
}

fn sized(text: &str, sizes: std::ops::RangeInclusive<usize>) -> bool {
    sizes.contains(&text.chars().count())
}

fn nested(text: &str, open: char, close: char, core: &str) -> bool {
    let depth = text.matches(open).count();
    let (before, behind) = (
        String::from(open).repeat(depth),
        String::from(close).repeat(depth),
    );
    text == before + core + &behind
}

fn is_name(word: &str) -> bool {
    let mut letters = word.chars();
    letters.next().is_some_and(|first| first.is_ascii_uppercase())
        && word.len() > 1
        && letters.all(|letter| letter.is_ascii_lowercase())
}

fn is_query(text: &str) -> bool {
    let Some((columns, rest)) = text
        .strip_prefix("SELECT ")
        .and_then(|rest| rest.split_once(" FROM "))
    else {
        return false;
    };
    let (table, limit) = rest.split_once(" LIMIT ").unwrap_or((rest, "1"));
    columns
        .split(", ")
        .all(|column| ["name", "age", "city"].contains(&column))
        && sized(table, 2..=8)
        && only(table, LOWER)
        && matches!(limit.parse(), Ok(1..=99))
}

/// Numbers and signs in turn, in parentheses that close.
fn is_sum(text: &str) -> bool {
    let (mut depth, mut number_next, mut digits) = (0, true, 0);
    for letter in text.chars() {
        match letter {
            '(' if number_next => depth += 1,
            ')' if !number_next && depth > 0 => (depth, digits) = (depth - 1, 4),
            '+' | '-' | '*' | '/' if !number_next => (number_next, digits) = (true, 0),
            '1'..='9' if number_next => (number_next, digits) = (false, 1),
            '0'..='9' if !number_next && (1..4).contains(&digits) => digits += 1,
            _ => return false,
        }
    }
    depth == 0 && !number_next
}

/// What follows a tree.
fn is_tree(text: &str) -> Option<&str> {
    if let Some(inner) = text.strip_prefix('(') {
        let rest = is_tree(inner)?.strip_prefix(' ')?;
        return is_tree(rest)?.strip_prefix(')');
    }
    text.strip_prefix(|letter: char| letter.is_ascii_lowercase())
}
