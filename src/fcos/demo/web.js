"use strict";
// The model in the browser: this `ask` replaces the one in page.js, which sends a request to a server.

const MIN_SCORE = 0.05;
ort.env.wasm.wasmPaths = new URL("ort/", location.href).href;
// Threads need shared memory, which browsers allow only on pages with the headers COOP and COEP.
if (!self.crossOriginIsolated) ort.env.wasm.numThreads = 1;
const loading = ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });
loading.catch((error) => say(`the model cannot be loaded: ${error.message}`));

async function ask(file) {
  const startedAt = performance.now();
  const session = await loading;
  const image = await decoded(file);
  const [height, width] = resizedSize(image);
  const images = padded(resized(image, height, width), height, width);
  const size = (...sides) => new ort.Tensor("int64", BigInt64Array.from(sides, BigInt), [1, 2]);
  const inputs = { images, sizes_hw: size(height, width), original_sizes_hw: size(image.height, image.width) };
  const predictedAt = performance.now();
  const { boxes_xyxy, scores, labels } = await session.run(inputs);
  const elapsed_ms = performance.now() - predictedAt;
  const detections = [...scores.data].map((score, index) => {
    const label = Number(labels.data[index]);
    const box_xyxy = [...boxes_xyxy.data.slice(4 * index, 4 * index + 4)];
    return { class_name: about.class_names[label], label, score, box_xyxy, level: null, point_xy: null };
  });
  return {
    answer: {
      width: image.width,
      height: image.height,
      detections: detections.filter((found) => found.score >= MIN_SCORE),
      elapsed_ms,
    },
    totalMs: performance.now() - startedAt,
  };
}

// Pixels of an image file, upright: {width, height, data: RGBA}.
async function decoded(file) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, options);
  } catch {
    throw new Error("this is not a readable image");
  }
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

function resizedSize({ height, width }) {
  let scale = about.longest_side / Math.max(height, width);
  if (about.short_side) scale = Math.min(scale, about.short_side / Math.min(height, width));
  return [height, width].map((side) => Math.max(1, Math.floor(side * scale + 0.5)));
}

// Bilinear and antialiased as in Pillow, rows first, each pass rounded: the canvas has no such filter. Gives RGB.
function resized({ data, height, width }, newHeight, newWidth) {
  const rows = new Uint8Array(height * newWidth * 3);
  const columns = filters(width, newWidth);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < newWidth; x++) {
      const { first, weights } = columns[x];
      let [red, green, blue] = [0.5, 0.5, 0.5]; // so that truncation below rounds to the nearest
      for (let i = 0, from = 4 * (y * width + first); i < weights.length; i++, from += 4) {
        red += weights[i] * data[from];
        green += weights[i] * data[from + 1];
        blue += weights[i] * data[from + 2];
      }
      rows.set([red, green, blue], 3 * (y * newWidth + x));
    }
  }
  const pixels = new Uint8Array(newHeight * newWidth * 3);
  const stride = 3 * newWidth;
  filters(height, newHeight).forEach(({ first, weights }, y) => {
    for (let x = 0; x < stride; x++) {
      let sum = 0.5;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * rows[(first + i) * stride + x];
      pixels[y * stride + x] = sum;
    }
  });
  return pixels;
}

// For each new pixel of a row, the first old pixel and the weights of that and the following ones.
function filters(oldSide, newSide) {
  const scale = oldSide / newSide;
  const reach = Math.max(1, scale);
  return Array.from({ length: newSide }, (_, place) => {
    const center = (place + 0.5) * scale;
    const first = Math.max(0, Math.floor(center - reach + 0.5));
    const last = Math.min(oldSide, Math.floor(center + reach + 0.5));
    const heights = Array.from({ length: last - first }, (_, i) =>
      Math.max(0, 1 - Math.abs(first + i - center + 0.5) / reach),
    );
    const sum = heights.reduce((a, b) => a + b, 0);
    return { first, weights: Float64Array.from(heights, (each) => each / sum) };
  });
}

// Channel by channel, zeros at the bottom and right.
function padded(pixels, height, width) {
  const [fullHeight, fullWidth] = [height, width].map((side) => Math.ceil(side / about.multiple) * about.multiple);
  const data = new Uint8Array(3 * fullHeight * fullWidth);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let channel = 0; channel < 3; channel++)
        data[(channel * fullHeight + y) * fullWidth + x] = pixels[3 * (y * width + x) + channel];
  return new ort.Tensor("uint8", data, [1, 3, fullHeight, fullWidth]);
}
