// Pictures from the camera and from files, as the device takes them.

const LONGER_SIDE = 640; // pixels; models take in 64 to 512
const TAKEN = new Set(["image/jpeg", "image/png", "image/webp", "image/bmp"]);
const SMALL = 500_000; // bytes; such files go as they are

function drawn(source, width, height) {
  const canvas = document.createElement("canvas");
  const scale = Math.min(1, LONGER_SIDE / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff"; // behind what is transparent, for JPEG has no alpha
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
}

export async function fromVideo(video) {
  return video.videoWidth ? drawn(video, video.videoWidth, video.videoHeight) : null;
}

// Large photographs are made smaller here: a phone's fill the line for seconds. Upright, as its camera noted.
export async function fromFile(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is no picture that this browser can read.`);
  }
  const asIs = TAKEN.has(file.type) && file.size <= SMALL;
  const blob = asIs ? file : await drawn(bitmap, bitmap.width, bitmap.height);
  bitmap.close();
  return blob;
}

export function base64(blob) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(blob);
  });
}
