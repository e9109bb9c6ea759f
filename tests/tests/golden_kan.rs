//! Kolmogorov-Arnold networks against recorded values.
#![allow(clippy::unwrap_used, reason = "tests")]

use candle_core::{DType, Device, Result};
use semisep_core::VarBuilder;
use semisep_kan::{Kan, KanConfig};
use semisep_tests::{assert_close, cases};
use serde_json::json;

#[test]
fn recorded_cases() -> Result<()> {
    for case in cases("layers", "kan__") {
        let widths: Vec<usize> = serde_json::from_value(case.config["sizes"].clone()).unwrap();
        let keys = ["grid_size", "spline_order", "grid_range", "base_activation", "spline_scaler"];
        let own: serde_json::Map<_, _> = keys.iter().map(|k| ((*k).into(), case.config[k].clone())).collect();
        let config: KanConfig = serde_json::from_value(json!(own)).unwrap();
        for (dtype, out, grad) in [(DType::F64, 1e-12, 1e-11), (DType::F32, 1e-5, 1e-4)] {
            let parameters = case.parameters(str::to_owned);
            let kan =
                Kan::with_widths(&widths, &config, &VarBuilder::new(parameters.clone(), dtype, Device::Cpu))?;
            assert_eq!(parameters.unread(), Vec::<String>::new());
            let x = case.input("x", dtype)?;
            let y = kan.apply(&x)?;
            assert_close(&format!("{} {dtype:?} y", case.name), &y, &case.get("out.y")?, out);
            case.check_gradients(&[("y", &y)], &[("x", &x)], &parameters, grad)?;
        }
    }
    Ok(())
}
