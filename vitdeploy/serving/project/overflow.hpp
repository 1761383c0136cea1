// Whether pairs of INT8 products are added in 16 bits, which overflow: on x86-64 without VNNI.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

inline bool overflows() {
#if defined(__x86_64__)
  unsigned int a = 0, b = 0, c = 0, d = 0;
  const bool wide = __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (c >> 11 & 1) != 0;
  const bool narrow = __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
  return !wide && !narrow;
#else
  return false;
#endif
}
