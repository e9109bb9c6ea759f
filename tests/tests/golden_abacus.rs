//! Digit places against recorded ones.

use candle_core::{DType, Result};
use semisep_core::abacus_positions;
use semisep_tests::cases;

#[test]
fn recorded_positions() -> Result<()> {
    for case in cases("layers", "abacus__") {
        let digits: Vec<u32> = case.config["digit_tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| d.as_u64().unwrap() as u32)
            .collect();
        let shift = case.config["shift"].as_u64().unwrap() as u32;
        let rows = |name: &str| case.get(name)?.to_dtype(DType::I64)?.to_vec2::<i64>();
        for (row, (ids, want)) in rows("in.input_ids")?.iter().zip(rows("out.position_ids")?).enumerate() {
            let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
            let got = abacus_positions(&ids, &digits, shift, &mut 0);
            assert!(got.iter().map(|&p| i64::from(p)).eq(want), "{} row {row}: {got:?}", case.name);
        }
    }
    Ok(())
}
