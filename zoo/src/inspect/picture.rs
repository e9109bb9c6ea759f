//! Matrices as pictures: red for positive, blue for negative, white for zero.

use candle_core::{DType, Tensor};

use crate::{Error, Result};

/// Pixels that a picture has on a side, at least.
const SIDE: usize = 256;

/// Decades that a logarithmic picture shows below the largest value.
const DECADES: f64 = 6.0;

/// Stops of either half of the colour map, from zero to the largest value.
const RED: [[f64; 3]; 4] =
    [[255.0, 255.0, 255.0], [253.0, 187.0, 132.0], [215.0, 48.0, 31.0], [103.0, 0.0, 13.0]];
const BLUE: [[f64; 3]; 4] =
    [[255.0, 255.0, 255.0], [166.0, 206.0, 227.0], [33.0, 113.0, 181.0], [8.0, 29.0, 88.0]];

/// How values become shades.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// In proportion to the largest.
    Linear,
    /// By their logarithm, over six decades below the largest.
    Log,
}

/// A matrix (rows, columns) as a PNG file, each number a square of whole pixels; the largest absolute value has the
/// darkest shade. What is not finite is grey.
///
/// # Errors
/// If the matrix is empty or not a matrix.
pub fn png(matrix: &Tensor, scale: Scale) -> Result<Vec<u8>> {
    let (rows, columns) = matrix.dims2()?;
    let values: Vec<f64> = matrix.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    let largest = values.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
    let zoom = SIDE.div_ceil(rows.max(columns).max(1));
    let mut pixels = Vec::with_capacity(rows * columns * zoom * zoom * 3);
    for row in values.chunks(columns.max(1)) {
        let line: Vec<u8> = row.iter().flat_map(|&v| colour(v, largest, scale).repeat(zoom)).collect();
        for _ in 0..zoom {
            pixels.extend_from_slice(&line);
        }
    }
    let side = |n: usize| u32::try_from(n * zoom).map_err(Error::new);
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, side(columns)?, side(rows)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(Error::new)?;
    writer.write_image_data(&pixels).map_err(Error::new)?;
    writer.finish().map_err(Error::new)?;
    Ok(file)
}

fn colour(value: f64, largest: f64, scale: Scale) -> [u8; 3] {
    if !value.is_finite() {
        return [128; 3];
    }
    let part = if largest == 0.0 { 0.0 } else { value.abs() / largest };
    let shade = match scale {
        Scale::Linear => part,
        Scale::Log => (1.0 + part.log10() / DECADES).clamp(0.0, 1.0),
    };
    let stops = if value < 0.0 { &BLUE } else { &RED };
    let place = shade * (stops.len() - 1) as f64;
    let i = (place as usize).min(stops.len() - 2);
    std::array::from_fn(|c| {
        let (near, far) = (stops[i][c], stops[i + 1][c]);
        (near + (far - near) * (place - i as f64)).round() as u8
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn signs_and_sizes_are_seen() -> Result<()> {
        let matrix = Tensor::new(&[[1.0f64, -1.0], [0.0, f64::NAN]], &Device::Cpu)?;
        let file = png(&matrix, Scale::Linear)?;
        let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (256, 256));
        let at = |x: usize, y: usize| &pixels[(y * 256 + x) * 3..][..3];
        assert_eq!((at(0, 0), at(127, 127)), (&[103, 0, 13][..], &[103, 0, 13][..]));
        assert_eq!((at(128, 0), at(0, 128), at(255, 255)), (&[8, 29, 88][..], &[255; 3][..], &[128; 3][..]));
        Ok(())
    }

    #[test]
    fn a_logarithmic_scale_shows_small_values() {
        let of = |scale| colour(1e-3, 1.0, scale);
        assert_eq!(of(Scale::Linear), [255; 3]);
        assert_ne!(of(Scale::Log), [255; 3]);
        assert_eq!(colour(0.0, 1.0, Scale::Log), [255; 3]);
        assert_eq!(colour(1e-7, 1.0, Scale::Log), [255; 3]);
    }
}
