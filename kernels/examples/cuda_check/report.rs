//! Collects checks and times; measures with the device's own clock.

use candle_core::{DType, Device, Result, Tensor};
use serde_json::json;

use crate::common::relative_rms;

/// Bytes a second that floors are reckoned with: a large copy on an H100, read plus written.
pub(crate) const BANDWIDTH: f64 = 3.0e12;

pub(crate) struct Report {
    device: Device,
    name: String,
    checks: usize,
    worst: Vec<(String, f64, f64)>,
    failures: Vec<String>,
    times: Vec<serde_json::Value>,
}

impl Report {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        let name = clock::name(device)?;
        println!("{name}");
        let lists = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self {
            device: device.clone(),
            name,
            checks: 0,
            worst: lists.0,
            failures: lists.1,
            times: lists.2,
        })
    }

    /// A result against what it should be; both are moved to the CPU.
    pub(crate) fn compare(&mut self, what: &str, got: &Tensor, want: &Tensor, tolerance: f64) -> Result<()> {
        let error = if got.dims() == want.dims() {
            relative_rms(&got.to_device(&Device::Cpu)?, &want.to_device(&Device::Cpu)?)
        } else {
            f64::NAN
        };
        self.checks += 1;
        if error.is_nan() || error > tolerance {
            let line = format!(
                "{what}: relative RMS {error:.3e}, tolerance {tolerance:.0e}, shape {:?}",
                got.dims()
            );
            println!("FAILED {line}");
            self.failures.push(line);
        }
        let part: String = what.rsplit(' ').take(2).collect::<Vec<_>>().join(" of ");
        match self.worst.iter_mut().find(|w| w.0 == part) {
            Some(w) => w.1 = w.1.max(error),
            None => self.worst.push((part, error, tolerance)),
        }
        Ok(())
    }

    pub(crate) fn expect(&mut self, what: &str, holds: bool) {
        self.checks += 1;
        if !holds {
            println!("FAILED {what}");
            self.failures.push(what.into());
        }
    }

    pub(crate) fn failed(&self) -> bool {
        !self.failures.is_empty() || self.checks == 0
    }

    /// Fills fresh memory with NaN and frees it, so that what a kernel does not write is not right by chance.
    pub(crate) fn poison(&self, elements: usize, dtype: DType) -> Result<()> {
        let keep = [elements, elements.div_ceil(2), 4096]
            .map(|n| Tensor::full(f32::NAN, n.max(1), &self.device).and_then(|t| t.to_dtype(dtype)));
        keep.into_iter().try_for_each(|t| t.map(drop))
    }

    /// Median time of `f(i)`, i counting up, on the device; kept under a name with the fewest bytes it must move.
    pub(crate) fn time(
        &mut self,
        op: &str,
        shape: &str,
        bytes: f64,
        f: impl FnMut(usize) -> Result<()>,
    ) -> Result<f64> {
        let ms = clock::median_ms(&self.device, 60, f)?;
        self.add_time(op, shape, bytes, ms);
        Ok(ms)
    }

    pub(crate) fn add_time(&mut self, op: &str, shape: &str, bytes: f64, ms: f64) {
        let floor = bytes / BANDWIDTH * 1e3;
        println!(
            "{op:36} {shape:44} {ms:9.4} ms  floor {floor:8.4}  x{:.2}  {:.0} GB/s",
            ms / floor,
            bytes / ms / 1e6
        );
        self.times.push(json!({ "op": op, "shape": shape, "ms": ms, "floor_ms": floor, "bytes": bytes }));
    }

    /// A device-to-device copy, bytes read plus written.
    pub(crate) fn copy_ceiling(&mut self) -> Result<()> {
        let n = 1 << 30;
        let x = Tensor::ones(n, DType::BF16, &self.device)?;
        self.time("device copy", "2 GiB bf16", 4.0 * n as f64, |_| x.copy().map(drop)).map(drop)
    }

    pub(crate) fn print(&self) {
        for (part, error, tolerance) in &self.worst {
            println!("worst {part:40} {error:.2e} (tolerance {tolerance:.0e})");
        }
        println!("{} checks, {} failed", self.checks, self.failures.len());
    }

    pub(crate) fn json(&self) -> String {
        let worst: Vec<_> =
            self.worst.iter().map(|(p, e, t)| json!({"part": p, "error": e, "tolerance": t})).collect();
        let all = json!({
            "device": self.name, "checks": self.checks, "failures": self.failures, "worst": worst, "times": self.times,
        });
        format!("{all:#}\n")
    }
}

#[cfg(feature = "cuda")]
pub(crate) mod clock {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::sys::{
        CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode,
    };
    use candle_core::{Device, Result};

    pub(crate) fn name(device: &Device) -> Result<String> {
        let stream = device.as_cuda_device()?.cuda_stream();
        let (major, minor) = stream.context().compute_capability().w()?;
        Ok(format!("{}, sm_{major}{minor}", stream.context().name().w()?))
    }

    /// Median over calls, each between two events; the calls are queued without waiting.
    pub(crate) fn median_ms(
        device: &Device,
        reps: usize,
        mut f: impl FnMut(usize) -> Result<()>,
    ) -> Result<f64> {
        let stream = device.as_cuda_device()?.cuda_stream();
        for i in 0..5 {
            f(i)?;
        }
        device.synchronize()?;
        let event = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).w();
        let mut events = vec![event()?];
        for i in 0..reps {
            f(i)?;
            events.push(event()?);
        }
        device.synchronize()?;
        let mut times: Vec<f32> =
            events.windows(2).map(|w| w[0].elapsed_ms(&w[1]).w()).collect::<Result<_>>()?;
        times.sort_by(f32::total_cmp);
        Ok(f64::from(times[times.len() / 2]))
    }

    /// Time of one call out of `n` captured in a graph, which leaves out what the host does; median of 20 replays.
    pub(crate) fn graph_ms(device: &Device, n: usize, mut f: impl FnMut(usize) -> Result<()>) -> Result<f64> {
        f(0)?;
        device.synchronize()?;
        let stream = device.as_cuda_device()?.cuda_stream();
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
        let captured = (0..n).try_for_each(&mut f);
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = stream.end_capture(flags).w();
        captured?;
        let Some(graph) = graph? else { candle_core::bail!("nothing was captured") };
        Ok(median_ms(device, 20, |_| graph.launch().w())? / n as f64)
    }
}

#[cfg(not(feature = "cuda"))]
pub(crate) mod clock {
    use candle_core::{Device, Error, Result};

    pub(crate) fn name(_: &Device) -> Result<String> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(crate) fn median_ms(_: &Device, _: usize, _: impl FnMut(usize) -> Result<()>) -> Result<f64> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(crate) fn graph_ms(_: &Device, _: usize, _: impl FnMut(usize) -> Result<()>) -> Result<f64> {
        Err(Error::NotCompiledWithCudaSupport)
    }
}
