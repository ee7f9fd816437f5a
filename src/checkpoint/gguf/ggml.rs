//! How GGML numbers the kinds of tensors.

use crate::checkpoint::Kind;

/// Those that others of llama.cpp's files have, and nothing here decodes.
const UNREAD: [(u32, &str); 19] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

/// The kind of a number, or what is wrong with it.
pub fn kind(code: u32) -> Result<Kind, String> {
    Ok(match code {
        0 => Kind::F32,
        1 => Kind::F16,
        2 => Kind::Q4_0,
        3 => Kind::Q4_1,
        6 => Kind::Q5_0,
        7 => Kind::Q5_1,
        8 => Kind::Q8_0,
        10 => Kind::Q2K,
        11 => Kind::Q3K,
        12 => Kind::Q4K,
        13 => Kind::Q5K,
        14 => Kind::Q6K,
        20 => Kind::Iq4Nl,
        30 => Kind::Bf16,
        24 => Kind::Other { name: "I8", values: 1, bytes: 1 },
        25 => Kind::Other { name: "I16", values: 1, bytes: 2 },
        26 => Kind::Other { name: "I32", values: 1, bytes: 4 },
        27 => Kind::Other { name: "I64", values: 1, bytes: 8 },
        28 => Kind::Other { name: "F64", values: 1, bytes: 8 },
        _ => {
            let unread = UNREAD.iter().find(|(other, _)| *other == code);
            let name = unread.map_or(format!("the unknown type {code}"), |(_, name)| {
                format!("type {name}, which is not read here")
            });
            return Err(format!(
                "it is of {name}; read are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to \
                 Q6_K and IQ4_NL"
            ));
        }
    })
}
