"""A Tk window that shows drawn images and frames: `fcos predict --show`."""

from __future__ import annotations

import time

from PIL import Image

from fcos.errors import FcosError

SHARE_OF_SCREEN = 0.9


class Window:
    """A window, in the main thread; raises an `FcosError` without a screen or Tk."""

    def __init__(self) -> None:
        try:
            import tkinter  # only here: some Pythons come without it

            from PIL import ImageTk

            self._root = tkinter.Tk(className="fcos")
        except ImportError as error:
            raise FcosError("--show needs tkinter", fix="install it (apt install python3-tk)") from error
        except tkinter.TclError as error:
            raise FcosError(
                f"--show cannot open a window: {error}",
                fix="run it on a machine with a screen, or omit --show and open the drawn copies",
            ) from error
        self._label, self._photo_image = tkinter.Label(self._root), ImageTk.PhotoImage
        self._label.pack()
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        self._root.bind("<Key>", lambda event: setattr(self, "_key_pressed", True))
        self._root.bind("<Escape>", lambda event: self.close())
        self.is_open, self._key_pressed = True, False

    def show(self, image: Image.Image, title: str, *, wait: bool = False) -> None:
        """Show an image, at most as large as the screen; `wait` until a key is pressed."""
        if not self.is_open:
            return
        width, height = self._root.winfo_screenwidth(), self._root.winfo_screenheight()
        image = image.copy()
        image.thumbnail((round(SHARE_OF_SCREEN * width), round(SHARE_OF_SCREEN * height)))
        self._pixels = self._photo_image(image, master=self._root)  # Tk itself keeps no reference
        self._label.configure(image=self._pixels)
        self._root.title(title)
        self._key_pressed = False
        self._root.update()
        while wait and self.is_open and not self._key_pressed:
            time.sleep(0.02)
            self._root.update()

    def close(self) -> None:
        """Close the window: when the user closes it, or at the end of the command."""
        if self.is_open:
            self.is_open = False
            self._root.destroy()
