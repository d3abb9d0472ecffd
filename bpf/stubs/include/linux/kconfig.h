/* What BCC's headers take from a kernel tree, and nothing more. */
#pragma once
#define CONFIG_BPF_SYSCALL 1

#include <linux/types.h>
#include <linux/stddef.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
typedef __SIZE_TYPE__ size_t;
typedef __UINTPTR_TYPE__ uintptr_t;

#define true 1
#define false 0
#define NULL ((void *)0)

#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
