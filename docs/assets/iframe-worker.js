// Search runs in a worker, which browsers refuse to pages opened from a folder. There a hidden frame takes its place.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      const inside = frame.contentWindow
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      inside.importScripts = (...urls) => Promise.all(urls.map(url => this.load(inside, url)))
      this.inside = inside
      this.ready = this.load(inside, url)
    }
    load(inside, url) {
      return new Promise(done => {
        const script = inside.document.createElement("script")
        script.src = url
        script.onload = done
        inside.document.body.append(script)
      })
    }
    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
}
