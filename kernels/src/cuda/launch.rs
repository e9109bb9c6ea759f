//! Launches: arguments out of candle's storages, outputs as fresh ones.

use candle_core::cuda_backend::cudarc::driver::sys::{CUdevice_attribute, CUmemPool_attribute};
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaStream, DevicePtr, DevicePtrMut, LaunchConfig, PushKernelArg, SyncOnDrop, result,
};
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice, WrapErr};
use candle_core::{CudaStorage, DType, Result, Storage, bail};

/// The CUDA storage behind a tensor's guard.
pub(crate) fn cuda<'a>(op: &str, storage: &'a Storage) -> Result<&'a CudaStorage> {
    match storage {
        Storage::Cuda(storage) => Ok(storage),
        other => bail!("{op}: inputs live on different devices, one on {:?}", other.device().location()),
    }
}

/// A fresh storage of `n` values, not initialised: the kernel that gets it writes every one.
pub(crate) fn alloc(device: &CudaDevice, dtype: DType, n: usize) -> Result<CudaStorage> {
    // The driver refuses empty allocations.
    let n = n.max(1);
    // SAFETY: device memory, never read by the host before a kernel has written it; any bits are a number.
    unsafe {
        Ok(match dtype {
            DType::F32 => CudaStorage::wrap_cuda_slice(device.alloc::<f32>(n)?, device.clone()),
            DType::F64 => CudaStorage::wrap_cuda_slice(device.alloc::<f64>(n)?, device.clone()),
            DType::BF16 => CudaStorage::wrap_cuda_slice(device.alloc::<half::bf16>(n)?, device.clone()),
            DType::F16 => CudaStorage::wrap_cuda_slice(device.alloc::<half::f16>(n)?, device.clone()),
            other => bail!("no CUDA buffer of {other:?} for a kernel's output"),
        })
    }
}

/// A table of integers on the device.
pub(crate) fn table(device: &CudaDevice, values: &[i32]) -> Result<CudaStorage> {
    Ok(CudaStorage::wrap_cuda_slice(device.clone_htod(values)?, device.clone()))
}

/// Number of multiprocessors.
pub(crate) fn multiprocessors(device: &CudaDevice) -> Result<usize> {
    let count = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    Ok(device.cuda_stream().context().attribute(count).w()?.max(1) as usize)
}

/// See [`super::keep_freed_memory`].
pub(super) fn keep_freed_memory(device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut all = u64::MAX;
    // SAFETY: the device is the context's own; the attribute is a 64-bit number.
    unsafe {
        let pool = result::device::get_mem_pool(context.cu_device()).w()?;
        let threshold = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, threshold, (&raw mut all).cast()).w()
    }
}

/// A kernel's arguments in order. Pointers and `long long` alone, so that each is eight bytes.
pub(crate) struct Args<'a> {
    stream: &'a CudaStream,
    values: Vec<u64>,
    /// Told of the launch when they go.
    guards: Vec<SyncOnDrop<'a>>,
}

impl<'a> Args<'a> {
    pub(crate) fn new(stream: &'a CudaStream) -> Self {
        Self { stream, values: Vec::with_capacity(20), guards: Vec::with_capacity(12) }
    }

    /// A buffer that is read, from its `offset`-th value on.
    pub(crate) fn read(mut self, storage: &'a CudaStorage, offset: usize) -> Result<Self> {
        let stream = self.stream;
        let ((pointer, guard), size) = match &storage.slice {
            CudaStorageSlice::F32(s) => (s.device_ptr(stream), 4),
            CudaStorageSlice::F64(s) => (s.device_ptr(stream), 8),
            CudaStorageSlice::BF16(s) => (s.device_ptr(stream), 2),
            CudaStorageSlice::F16(s) => (s.device_ptr(stream), 2),
            CudaStorageSlice::I32(s) => (s.device_ptr(stream), 4),
            _ => bail!("a CUDA kernel reads floats or i32"),
        };
        self.values.push(pointer + (offset * size) as u64);
        self.guards.push(guard);
        Ok(self)
    }

    /// A buffer that may be absent: then a null pointer.
    pub(crate) fn read_option(self, storage: Option<(&'a CudaStorage, usize)>) -> Result<Self> {
        match storage {
            Some((storage, offset)) => self.read(storage, offset),
            None => Ok(self.null()),
        }
    }

    /// A buffer that is written (or read and written), from its `offset`-th value on.
    pub(crate) fn write(mut self, storage: &'a mut CudaStorage, offset: usize) -> Result<Self> {
        let stream = self.stream;
        let ((pointer, guard), size) = match &mut storage.slice {
            CudaStorageSlice::F32(s) => (s.device_ptr_mut(stream), 4),
            CudaStorageSlice::F64(s) => (s.device_ptr_mut(stream), 8),
            CudaStorageSlice::BF16(s) => (s.device_ptr_mut(stream), 2),
            CudaStorageSlice::F16(s) => (s.device_ptr_mut(stream), 2),
            _ => bail!("a CUDA kernel writes floats"),
        };
        self.values.push(pointer + (offset * size) as u64);
        self.guards.push(guard);
        Ok(self)
    }

    /// A buffer that may be absent: then a null pointer.
    pub(crate) fn write_option(self, storage: Option<&'a mut CudaStorage>) -> Result<Self> {
        match storage {
            Some(storage) => self.write(storage, 0),
            None => Ok(self.null()),
        }
    }

    fn null(mut self) -> Self {
        self.values.push(0);
        self
    }

    /// Sizes and flags, each a `long long`.
    pub(crate) fn ints<const N: usize>(mut self, values: [usize; N]) -> Self {
        self.values.extend(values.map(|v| v as u64));
        self
    }

    /// Starts the kernel on `blocks` blocks; nothing to do for none.
    ///
    /// # Safety
    /// The function takes these arguments in this order, and stays within the buffers.
    pub(crate) unsafe fn launch(
        self,
        function: &CudaFunction,
        blocks: usize,
        threads: (usize, usize),
    ) -> Result<()> {
        if blocks == 0 {
            return Ok(());
        }
        if blocks > i32::MAX as usize {
            bail!("a CUDA launch of {blocks} blocks: the input is too large for one call");
        }
        let mut builder = self.stream.launch_builder(function);
        for value in &self.values {
            builder.arg(value);
        }
        let config = LaunchConfig {
            grid_dim: (blocks as u32, 1, 1),
            block_dim: (threads.0 as u32, threads.1 as u32, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the caller's promise.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
}
