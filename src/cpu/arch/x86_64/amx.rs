//! AMX: tiles of 16 rows by 64 bytes. Its intrinsics are not stable, hence assembly.

use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
use std::sync::OnceLock;

use crate::cpu::simd::{TILE_ROWS, TILE_WORDS, TileUnit};

/// AMX with BF16 and INT8.
#[derive(Clone, Copy, Debug)]
pub struct Amx(());

/// What `ldtilecfg` reads: palette 1, all eight tiles of their full size.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = {
    let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        config.row_bytes[tile] = 4 * TILE_WORDS as u16;
        config.rows[tile] = TILE_ROWS as u8;
        tile += 1;
    }
    config
};

/// Whether the processor has the unit, the system saves its state, and this process may use it.
fn usable() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| {
        let features = super::features();
        let has = |name| features.contains(&(name, true));
        has("amx-tile") && has("amx-bf16") && has("amx-int8") && permitted()
    })
}

/// Asks Linux to let this process use the tiles, which it does where it saves their state.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes nothing but what this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

impl TileUnit for Amx {
    fn new() -> Option<Self> {
        usable().then_some(Amx(()))
    }

    #[inline]
    fn enter(self, work: impl FnOnce()) {
        // SAFETY: `self` exists, so the unit may be used; `CONFIG` is 64 bytes as the instruction reads them.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
        work();
        // SAFETY: as above. Nothing reads the tiles afterwards, and without them the system has less to save.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }

    #[inline(always)]
    fn zero<const T: u8>(self) {
        // SAFETY: `self` exists, so the unit may be used; before `enter` the instruction faults. No other code uses tiles.
        unsafe { asm!("tilezero tmm{}", const T, options(nostack, nomem)) };
    }

    #[inline(always)]
    fn load<const T: u8>(self, rows: &[f32], stride: usize) {
        assert!(rows.len() >= (TILE_ROWS - 1) * stride + TILE_WORDS);
        // SAFETY: as in `zero`; all that is read was just found to be in the slice.
        unsafe {
            asm!(
                "tileloadd tmm{}, [{} + {}]", const T, in(reg) rows.as_ptr(), in(reg) 4 * stride,
                options(nostack, readonly),
            );
        }
    }

    #[inline(always)]
    fn prefetch(self, line: &[f32]) {
        // SAFETY: a prefetch of any address is only a hint; SSE is in the baseline.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) }
    }

    #[inline(always)]
    fn store<const T: u8>(self, rows: &mut [f32], stride: usize) {
        assert!(stride >= TILE_WORDS && rows.len() >= (TILE_ROWS - 1) * stride + TILE_WORDS);
        // SAFETY: as in `zero`; all that is written was just found to be in the slice.
        unsafe {
            asm!(
                "tilestored [{} + {}], tmm{}", in(reg) rows.as_mut_ptr(), in(reg) 4 * stride, const T,
                options(nostack),
            );
        }
    }

    #[inline(always)]
    fn dot_bf16<const C: u8, const A: u8, const B: u8>(self) {
        // SAFETY: as in `zero`.
        unsafe { asm!("tdpbf16ps tmm{}, tmm{}, tmm{}", const C, const A, const B, options(nostack, nomem)) };
    }

    #[inline(always)]
    fn dot_int8<const C: u8, const A: u8, const B: u8>(self) {
        // SAFETY: as in `zero`.
        unsafe { asm!("tdpbssd tmm{}, tmm{}, tmm{}", const C, const A, const B, options(nostack, nomem)) };
    }
}
