# Cumulative logit models by ordinal and MASS: Rscript tests/golden/make_ordinal.R, from the root of a clone.
suppressPackageStartupMessages({library(ordinal); library(MASS); library(jsonlite)})

sim <- read.csv("tests/golden/sim_responses.csv")
sim$grade <- pmin(sim$count, 4)
sim$weight <- 1 + sim$id %% 3
pbc <- read.csv("mixmoe/data/pbcseq.csv")
pbc$year <- pbc$day / 365.25
pbc <- pbc[!is.na(pbc$hepato) & !is.na(pbc$spiders), ]
pbc$age10 <- (pbc$age - 50) / 10
data <- list(sim_responses = sim, pbcseq = pbc)
for (name in c("grade", "stage", "edema")) for (set in names(data))
  if (name %in% names(data[[set]])) data[[set]][[paste0(name, "_f")]] <- factor(data[[set]][[name]])

# name, data, formula of mixmoe, arguments of mixmoe, formula of the peer, nAGQ
models <- list(
  list("grade", "sim_responses", "grade ~ time + x | re: (1 | id)", list(), grade_f ~ time + x + (1 | id), 1),
  list("grade_10", "sim_responses", "grade ~ time + x | re: (1 | id)", list(n_quad = 10), grade_f ~ time + x + (1 | id), 10),
  list("grade_slope", "sim_responses", "grade ~ time + x | re: (1 + time | id)", list(), grade_f ~ time + x + (1 + time | id), 1),
  list("grade_offset", "sim_responses", "grade ~ time + x | re: (1 | id)", list(offset = "log_exposure"),
       grade_f ~ time + x + offset(log_exposure) + (1 | id), 1),
  list("grade_weights", "sim_responses", "grade ~ time + x | re: (1 | id)", list(weights = "weight"), grade_f ~ time + x + (1 | id), 1),
  list("pbc_stage", "pbcseq", "stage ~ year + age10 | re: (1 | id)", list(), stage_f ~ year + age10 + (1 | id), 1),
  list("pbc_stage_10", "pbcseq", "stage ~ year + age10 | re: (1 | id)", list(n_quad = 10), stage_f ~ year + age10 + (1 | id), 10),
  list("pbc_edema_10", "pbcseq", "edema ~ year + age10 | re: (1 | id)", list(n_quad = 10), edema_f ~ year + age10 + (1 | id), 10)
)
plain <- list(
  list("grade_polr", "sim_responses", "grade ~ time + x", list(), grade_f ~ time + x),
  list("pbc_stage_polr", "pbcseq", "stage ~ year + age10", list(), stage_f ~ year + age10)
)

record <- function(case, peer, fit, beta, cuts, se, sd)
  list(name = case[[1]], peer = peer, data = case[[2]], formula = case[[3]], arguments = case[[4]],
       peer_formula = paste(deparse(case[[5]], width.cutoff = 500), collapse = ""), loglik = as.numeric(logLik(fit)),
       beta = unname(beta), cuts = unname(cuts), se = unname(se), sd = sd)

with_clmm <- function(case) {
  control <- clmm.control(gradTol = 1e-8, maxIter = 200, trace = 0)
  set <- data[[case[[2]]]]
  set$w <- if (is.null(case[[4]]$weights)) 1 else set[[case[[4]]$weights]]
  fit <- suppressWarnings(clmm(case[[5]], data = set, weights = w, nAGQ = case[[6]], control = control, Hess = TRUE))
  k <- length(fit$alpha)
  se <- sqrt(diag(vcov(fit)))[seq_len(k + length(fit$beta))]
  record(case, "ordinal::clmm", fit, fit$beta, fit$alpha, se, unname(sqrt(diag(as.matrix(VarCorr(fit)[[1]])))))
}

with_polr <- function(case) {
  fit <- polr(case[[5]], data = data[[case[[2]]]], Hess = TRUE, control = list(reltol = 1e-14, maxit = 1000))
  se <- sqrt(diag(vcov(fit)))
  record(case, "MASS::polr", fit, coef(fit), fit$zeta, c(se[-seq_along(coef(fit))], se[seq_along(coef(fit))]), list())
}

versions <- list(R = R.version.string, ordinal = as.character(packageVersion("ordinal")), MASS = as.character(packageVersion("MASS")))
write_json(list(versions = versions, cases = c(lapply(models, with_clmm), lapply(plain, with_polr))),
           "tests/golden/ordinal.json", digits = NA, auto_unbox = TRUE, pretty = TRUE, null = "null")
