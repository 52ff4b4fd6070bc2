// Functions of a framework that is already loaded, looked up by name: so a binding builds without
// the framework, and loads, with a reason, beside one that lacks them.

#ifndef TRUENORM_SYMBOLS_H
#define TRUENORM_SYMBOLS_H

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace truenorm {

class LoadedLibrary {
 public:
  // The first of these names (null-terminated list) that the process has loaded.
  explicit LoadedLibrary(const char* const* names) {
    for (; *names && !handle_; ++names) {
#if defined(_WIN32)
      handle_ = reinterpret_cast<void*>(GetModuleHandleA(*names));
#else
      handle_ = dlopen(*names, RTLD_LAZY | RTLD_NOLOAD);
#endif
    }
    if (!handle_) missing_ = "the framework's library";
  }

  // Look a function up; remembers the name of one that is not there.
  template <class F>
  void find(const char* name, F* function) {
    if (!handle_) return;
#if defined(_WIN32)
    *function = reinterpret_cast<F>(GetProcAddress(static_cast<HMODULE>(handle_), name));
#else
    *function = reinterpret_cast<F>(dlsym(handle_, name));
#endif
    if (!*function && !missing_) missing_ = name;
  }

  // What was not found first, or null.
  const char* missing() const { return missing_; }

 private:
  void* handle_ = nullptr;
  const char* missing_ = nullptr;
};

}  // namespace truenorm

#if defined(_WIN32)
#define TRUENORM_EXPORT extern "C" __declspec(dllexport)
#else
#define TRUENORM_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#endif
